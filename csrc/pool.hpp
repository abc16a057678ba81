// One lazy pool of threads for the process, rebuilt after a fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>

namespace physiofast {

// Thrown out of parallel_for when its caller asked to stop, such as by Ctrl-C.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

// Returns true when the work is to stop. Called on the thread that called parallel_for, and on no
// other, a few times a second.
using StopQuery = std::function<bool()>;

// What a task is given to stay interruptible.
class Watch {
 public:
  virtual ~Watch() = default;
  // Throws Interrupted when the job is to stop: because the query said so, or another task failed.
  // Cheap; long tasks call it every few milliseconds.
  virtual void poll() = 0;
};

// Calls work(data) on at most `num_threads` threads at once, of which the caller is one, and
// returns when all have returned. GOMP_parallel of a library for OpenMP is such a function.
using TeamStart = void (*)(void (*work)(void*), void* data, unsigned num_threads, unsigned flags);

// Who works: at most `count` threads, the caller among them, of the pool or of somebody's team.
// Where other libraries' teams wait for work spinning, theirs leaves the pool's threads no core.
struct Workers {
  Workers(int threads, TeamStart of_team = nullptr) : count(threads), start(of_team) {}

  // As many of them as work is worth that takes as long as a copy of so many floats: for less than
  // kLeastWork (6 us) each, another one saves little, and costs milliseconds where cores are busy.
  Workers worth(std::int64_t floats) const {
    const std::int64_t most = std::max<std::int64_t>(1, floats / kLeastWork);
    return {static_cast<int>(std::min<std::int64_t>(count, most)), start};
  }

  int count;
  TeamStart start;  // null: the pool

 private:
  static constexpr std::int64_t kLeastWork = 1 << 15;
};

using Task = std::function<void(std::int64_t index, Watch& watch)>;

// Runs task(i) for every i of [0, num_tasks) and returns when all have ended. Tasks are handed out
// in order. The first exception is rethrown after the tasks under way have ended; tasks that have
// not begun then never do. May be called by several threads at once. A task may not call
// parallel_for. A team asks the stop query before it starts and not again: nothing may unwind its
// frames.
void parallel_for(Workers workers, std::int64_t num_tasks, const Task& task,
                  const StopQuery& stop = {});

}  // namespace physiofast
