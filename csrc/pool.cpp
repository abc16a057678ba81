#include "pool.hpp"

#include <cxxabi.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "aligned.hpp"
#include "subnormals.hpp"

namespace physiofast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kAskEvery{50};

thread_local bool inside_task = false;

// Sets the thread's `inside_task` for a scope.
class Inside {
 public:
  explicit Inside(bool value) : before_(inside_task) { inside_task = value; }
  ~Inside() { inside_task = before_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  const bool before_;
};

// The thread as a handler of signals has to find it, for a scope: in no task, with buffers that no
// task holds (`kept`), and with subnormal numbers even where the task flushes them to zero.
class Outside {
 public:
  Outside() : inside_(false) { ++waiting_calls(); }
  ~Outside() { --waiting_calls(); }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;

 private:
  const Inside inside_;
  const Subnormals subnormals_{true};
};

// One call of parallel_for, on its caller's stack.
struct Job {
  Job(const Task& what, std::int64_t count) : task(what), num_tasks(count) {}

  void fail(std::exception_ptr reason) {
    if (!stopped.exchange(true)) error = std::move(reason);
  }

  // Takes tasks until none is left or one has failed.
  void run(Watch& watch) {
    const Inside inside(true);
    try {
      while (!stopped.load(std::memory_order_relaxed)) {
        const std::int64_t index = next.fetch_add(1, std::memory_order_relaxed);
        if (index >= num_tasks) return;
        watch.poll();
        task(index, watch);
      }
    } catch (const abi::__forced_unwind&) {  // pthread_exit must not be caught
      throw;
    } catch (...) {
      fail(std::current_exception());
    }
  }

  const Task& task;
  const std::int64_t num_tasks;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stopped{false};
  std::exception_ptr error;  // of the thread that set `stopped`; read when all have ended
  bool interrupted = false;  // the caller's
  int wanted = 0;            // helpers that may still join; guarded by the pool's mutex
  int active = 0;            // helpers at work; guarded by the pool's mutex
  std::condition_variable idle;
};

class HelperWatch : public Watch {
 public:
  explicit HelperWatch(const Job& job) : job_(job) {}
  void poll() override {
    if (job_.stopped.load(std::memory_order_relaxed)) throw Interrupted();
  }

 private:
  const Job& job_;
};

class CallerWatch : public Watch {
 public:
  CallerWatch(Job& job, const StopQuery& stop) : job_(job), stop_(stop) {}

  void poll() override {
    if (job_.stopped.load(std::memory_order_relaxed)) throw Interrupted();
    ask();
  }

  bool asks() const { return static_cast<bool>(stop_); }

  void ask() {
    if (!stop_ || Clock::now() - asked_ < kAskEvery) return;
    const bool stop = asked();
    asked_ = Clock::now();
    if (!stop) return;
    job_.interrupted = true;
    throw Interrupted();
  }

  bool asked() const {
    const Outside outside;
    return stop_();
  }

 private:
  Job& job_;
  const StopQuery& stop_;
  Clock::time_point asked_ = Clock::now();
};

// Threads that help with jobs. They are detached and the pool is never destroyed, so the end of the
// process neither waits for them nor takes anything away from them.
class Pool {
 public:
  void enlist(Job& job, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job.wanted = std::min(helpers, num_threads_);
      jobs_.push_back(&job);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
  }

  // Keeps further helpers from joining.
  void withdraw(Job& job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
  }

  // Waits until no helper is at work, or for a time; true when none is.
  bool wait(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    job.idle.wait(lock, [&] { return job.active == 0; });
    return true;
  }
  bool wait(Job& job, std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return job.idle.wait_for(lock, time, [&] { return job.active == 0; });
  }

 private:
  void grow(int helpers);
  void help();
  Job* join();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> jobs_;
  int num_threads_ = 0;
};

// Signals are for the threads of the program: it is them that they shall wake. Those of the
// thread's own making stay open, as blocked ones would end the process without their handler.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) {
      sigdelset(&blocked, own);
    }
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t before_;
};

void Pool::grow(int helpers) {
  if (num_threads_ >= helpers) return;
  const BlockedSignals blocked;  // a thread inherits them
  try {
    for (; num_threads_ < helpers; ++num_threads_) {
      std::thread helper([this] { help(); });
      pthread_setname_np(helper.native_handle(), "physiofast");
      helper.detach();
    }
  } catch (const std::system_error&) {
    // The system gives no more threads: fewer help, and the caller works in any case.
  }
}

Job* Pool::join() {
  for (Job* job : jobs_) {
    if (job->wanted == 0) continue;
    --job->wanted;
    ++job->active;
    return job;
  }
  return nullptr;
}

void Pool::help() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    Job* job = nullptr;
    wake_.wait(lock, [&] { return (job = join()) != nullptr; });
    lock.unlock();
    HelperWatch watch(*job);
    job->run(watch);
    lock.lock();
    // Under the lock: the job is gone as soon as its caller sees that nobody is at work.
    if (--job->active == 0) job->idle.notify_one();
  }
}

std::atomic<Pool*> current_pool{nullptr};

// A fork copies one thread only. The child leaves the parent's pool alone, whose mutex may be
// locked for good, and makes its own when it needs one; the old one's few bytes stay allocated.
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr); });

Pool& get_pool() {
  Pool* pool = current_pool.load();
  if (pool != nullptr) return *pool;
  auto* fresh = new Pool;  // no lock, which a fork could leave locked; it has no threads yet
  if (current_pool.compare_exchange_strong(pool, fresh)) return *fresh;
  delete fresh;
  return *pool;
}

// A job in a pool's list. No helper knows of the job after the destructor.
class Enlisted {
 public:
  Enlisted(Pool& pool, Job& job, int helpers) : pool_(pool), job_(job) {
    pool_.enlist(job_, helpers);
  }
  ~Enlisted() {
    if (ended_ || forked()) return;
    job_.stopped.store(true);
    pool_.withdraw(job_);
    pool_.wait(job_);
  }
  Enlisted(const Enlisted&) = delete;
  Enlisted& operator=(const Enlisted&) = delete;

  // The process is a child made since, by the stop query or a task: its helpers do not exist.
  bool forked() const { return current_pool.load() != &pool_; }

  void wait(CallerWatch& watch) {
    require_same_process();
    pool_.withdraw(job_);
    while (!(watch.asks() ? pool_.wait(job_, kAskEvery) : pool_.wait(job_))) {
      if (!job_.stopped.load()) watch.ask();
      require_same_process();
    }
    ended_ = true;
  }

 private:
  void require_same_process() const {
    if (forked()) throw std::runtime_error("the process was forked inside this call, in its child");
  }

  Pool& pool_;
  Job& job_;
  bool ended_ = false;
};

void work_in_team(void* data) {
  auto* job = static_cast<Job*>(data);
  HelperWatch watch(*job);
  job->run(watch);
}

void rethrow(const Job& job) {
  if (job.interrupted) throw Interrupted();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace

void parallel_for(Workers workers, std::int64_t num_tasks, const Task& task,
                  const StopQuery& stop) {
  if (workers.count < 1) throw std::invalid_argument("parallel_for needs at least one thread");
  if (inside_task) throw std::logic_error("parallel_for was called by one of its own tasks");
  Job job(task, num_tasks);
  CallerWatch watch(job, stop);
  const auto helpers = static_cast<int>(std::min<std::int64_t>(workers.count, num_tasks)) - 1;
  if (helpers < 1) {
    job.run(watch);
  } else if (workers.start != nullptr) {
    if (watch.asks() && watch.asked()) throw Interrupted();
    workers.start(work_in_team, &job, static_cast<unsigned>(helpers) + 1, 0);
  } else {
    Enlisted enlisted(get_pool(), job, helpers);
    job.run(watch);
    enlisted.wait(watch);
  }
  rethrow(job);
}

}  // namespace physiofast
