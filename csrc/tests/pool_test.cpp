// The pool without Python. Built and run plain and under sanitizers by csrc/tests/run.
#include "../pool.hpp"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

using physiofast::Interrupted;
using physiofast::parallel_for;
using physiofast::Watch;
using physiofast::Workers;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

// The child of a process with threads may make none under the thread sanitizer; it works alone
// there.
#ifdef __SANITIZE_THREAD__
constexpr int kChildThreads = 1;
#else
constexpr int kChildThreads = 3;
#endif

void work_for(milliseconds time, Watch* watch = nullptr) {
  const auto end = Clock::now() + time;
  while (Clock::now() < end) {
    if (watch != nullptr) watch->poll();
  }
}

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Threads of the pool, which bear its name; a sanitizer has threads of its own.
int count_helpers() {
  DIR* folder = opendir("/proc/self/task");
  CHECK(folder != nullptr);
  int count = 0;
  while (const dirent* entry = readdir(folder)) {
    std::ifstream file("/proc/self/task/" + std::string(entry->d_name) + "/comm");
    std::string name;
    count += std::getline(file, name) && name == "physiofast";
  }
  closedir(folder);
  return count;
}

// Results of every task, by index; wrong when one is missing or ran twice.
void check_sums(Workers workers, std::int64_t num_tasks) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(num_tasks), 0);
  parallel_for(workers, num_tasks,
               [&](std::int64_t i, Watch&) { out[static_cast<std::size_t>(i)] += 3 * i + 1; });
  for (std::int64_t i = 0; i < num_tasks; ++i) {
    CHECK(out[static_cast<std::size_t>(i)] == 3 * i + 1);
  }
}

// Waits for a child and returns its exit status; a child that hangs is killed by its own alarm.
int status_of(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) std::fprintf(stderr, "child: signal %d\n", WTERMSIG(status));
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

template <class Work>
pid_t in_child(Work work) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child != 0) return child;
  alarm(20);
  work();
  _exit(0);
}

template <class Error>
std::string message_of(Workers workers, std::int64_t num_tasks, const physiofast::Task& task) {
  try {
    parallel_for(workers, num_tasks, task);
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void test_threads_are_made_on_first_need() {
  check_sums(1, 100);
  CHECK(count_helpers() == 0);
  check_sums(3, 2);  // two tasks need one helper
  CHECK(count_helpers() == 1);
  check_sums(3, 100);
  check_sums(2, 100);
  check_sums(3, 100);
  CHECK(count_helpers() == 2);
}

void test_every_task_runs_once() {
  for (const int num_threads : {1, 2, 3, 8}) {
    for (const std::int64_t num_tasks : {0, 1, 2, 3, 7, 63, 1000}) {
      check_sums(num_threads, num_tasks);
    }
  }
}

void test_several_threads_work() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  parallel_for(3, 30, [&](std::int64_t, Watch&) {
    work_for(milliseconds(2));
    const std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  CHECK(seen.size() >= 2 && seen.size() <= 3);
  CHECK(seen.count(std::this_thread::get_id()) == 1);
}

void test_tasks_are_handed_out_in_order() {
  std::mutex mutex;
  std::map<std::thread::id, std::int64_t> last;
  parallel_for(4, 500, [&](std::int64_t i, Watch&) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = last.emplace(std::this_thread::get_id(), i);
    CHECK(known.second || known.first->second < i);
    known.first->second = i;
  });
  std::vector<std::int64_t> order;
  parallel_for(1, 50, [&](std::int64_t i, Watch&) { order.push_back(i); });
  CHECK(order.size() == 50 && std::is_sorted(order.begin(), order.end()));
}

void test_the_first_exception_reaches_its_caller() {
  for (const int num_threads : {1, 2, 4}) {
    const int most = 6 + 10 * num_threads;
    std::atomic<int> under_way{0}, begun{0};
    const std::string message =
        message_of<std::out_of_range>(num_threads, 10000, [&](std::int64_t i, Watch& watch) {
          const int number = ++begun;
          ++under_way;
          try {
            if (i == 5) throw std::out_of_range("task 5");
            // Until it is stopped, however long task 5 waits for a core; too many end at once.
            if (i > 5 && number < most) work_for(milliseconds(1000), &watch);
          } catch (...) {
            --under_way;
            throw;
          }
          --under_way;
        });
    CHECK(message == "task 5");
    CHECK(under_way == 0);
    CHECK(begun < most);
    check_sums(num_threads, 100);
  }
}

void test_an_exception_stops_a_long_task_of_another_thread() {
  const auto begin = Clock::now();
  const std::string message =
      message_of<std::runtime_error>(2, 2, [](std::int64_t i, Watch& watch) {
        if (i == 0) work_for(milliseconds(10000), &watch);
        work_for(milliseconds(10));
        throw std::runtime_error("short");
      });
  CHECK(message == "short");
  CHECK(milliseconds_since(begin) < 5000);
}

void test_refusals() {
  const auto nothing = [](std::int64_t, Watch&) {};
  CHECK(message_of<std::invalid_argument>(0, 4, nothing).find("at least one") != std::string::npos);
  const auto nested = [&](std::int64_t, Watch&) { parallel_for(2, 2, nothing); };
  for (const int num_threads : {1, 2}) {
    CHECK(message_of<std::logic_error>(num_threads, 8, nested).find("own tasks") !=
          std::string::npos);
  }
  check_sums(2, 10);
}

// A team of other threads, as libraries for OpenMP start one.
void start_team(void (*work)(void*), void* data, unsigned num_threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < num_threads; ++i) others.emplace_back(work, data);
  work(data);
  for (auto& other : others) other.join();
}

void test_a_team_works() {
  const int helpers = count_helpers();
  for (const int num_threads : {1, 2, 5}) {
    check_sums({num_threads, start_team}, 300);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    parallel_for({num_threads, start_team}, 30, [&](std::int64_t i, Watch&) {
      if (i < num_threads) work_for(milliseconds(20));
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    CHECK(seen.size() <= static_cast<std::size_t>(num_threads));
    CHECK(num_threads == 1 || seen.size() >= 2);
  }
  CHECK(count_helpers() == helpers);
}

void test_a_team_fails_and_stops() {
  std::atomic<int> begun{0};
  const auto fails = [&](std::int64_t i, Watch&) {
    ++begun;
    work_for(milliseconds(1));
    if (i == 5) throw std::runtime_error("task 5");
  };
  CHECK(message_of<std::runtime_error>({3, start_team}, 1000, fails) == "task 5" && begun < 1000);
  begun = 0;
  bool stopped = false;
  try {
    parallel_for({3, start_team}, 10, [&](std::int64_t, Watch&) { ++begun; }, [] { return true; });
  } catch (const Interrupted&) {
    stopped = true;
  }
  CHECK(stopped && begun == 0);
}

void test_many_callers_at_once() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([c] {
      for (int repeat = 0; repeat < 60; ++repeat) {
        check_sums(1 + (c + repeat) % 4, 40 + c);
        const std::string own = "caller " + std::to_string(c);
        const auto task = [&](std::int64_t i, Watch&) {
          if (i == 7) throw std::runtime_error(own);
        };
        CHECK(message_of<std::runtime_error>(1 + repeat % 4, 20, task) == own);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_the_stop_query() {
  for (const int num_threads : {1, 2, 4}) {
    const auto caller = std::this_thread::get_id();
    const auto begin = Clock::now();
    int asked = 0;
    bool stopped = false;
    try {
      parallel_for(
          num_threads, 1000, [](std::int64_t, Watch& watch) { work_for(milliseconds(20), &watch); },
          [&] {
            CHECK(std::this_thread::get_id() == caller);
            CHECK(milliseconds_since(begin) >= 50 * (asked + 1) - 1);
            return ++asked == 4;
          });
    } catch (const Interrupted&) {
      stopped = true;
    }
    CHECK(stopped && asked == 4);
    CHECK(milliseconds_since(begin) < 2000);
    check_sums(num_threads, 50);
  }
}

// The caller has run out of tasks and waits for the one of its helper.
void test_the_stop_query_while_waiting() {
  const auto caller = std::this_thread::get_id();
  std::atomic<bool> helper_at_work{false};
  bool stopped = false;
  const auto begin = Clock::now();
  try {
    parallel_for(
        2, 2,
        [&](std::int64_t, Watch& watch) {
          if (std::this_thread::get_id() == caller) {
            while (!helper_at_work) std::this_thread::yield();
            return;
          }
          helper_at_work = true;
          work_for(milliseconds(10000), &watch);
        },
        [&] { return milliseconds_since(begin) > 200; });
  } catch (const Interrupted&) {
    stopped = true;
  }
  CHECK(stopped && helper_at_work);
  CHECK(milliseconds_since(begin) < 5000);
}

void test_a_stop_query_that_throws_or_calls() {
  const auto slow = [](std::int64_t, Watch& watch) { work_for(milliseconds(20), &watch); };
  for (const int num_threads : {1, 3}) {
    std::string message;
    try {
      parallel_for(num_threads, 1000, slow, []() -> bool { throw std::runtime_error("query"); });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "query");
    int calls = 0;
    parallel_for(num_threads, 20, slow, [&calls] {
      check_sums(3, 100);
      ++calls;
      return false;
    });
    CHECK(calls > 0);
  }
}

void test_helpers_leave_signals_to_the_program() {
  std::atomic<int> open{0};
  parallel_for(3, 30, [&](std::int64_t, Watch&) {
    work_for(milliseconds(1));
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    const bool own = std::strcmp(
                         [] {
                           static thread_local char name[16];
                           pthread_getname_np(pthread_self(), name, sizeof(name));
                           return name;
                         }(),
                         "physiofast") == 0;
    if (own && sigismember(&blocked, SIGINT) == 0) ++open;
    if (own) CHECK(sigismember(&blocked, SIGSEGV) == 0 && sigismember(&blocked, SIGBUS) == 0);
  });
  CHECK(open == 0);
  sigset_t blocked;
  pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
  CHECK(sigismember(&blocked, SIGINT) == 0);
}

void test_fork_after_use() {
  check_sums(3, 100);
  const pid_t child = in_child([] {
    CHECK(count_helpers() == 0);
    check_sums(1, 50);
    check_sums(kChildThreads, 500);
    CHECK(count_helpers() == kChildThreads - 1);
    CHECK(status_of(in_child([] { check_sums(kChildThreads, 100); })) == 0);
  });
  check_sums(3, 100);
  CHECK(status_of(child) == 0);
}

// The pool's mutex may be locked, and jobs are under way, in the moment of the fork.
void test_fork_during_use() {
  std::atomic<bool> done{false};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&done, c] {
      while (!done) check_sums(2 + c, 20);
    });
  }
  for (int repeat = 0; repeat < 60; ++repeat) {
    CHECK(status_of(in_child([] { check_sums(kChildThreads, 40); })) == 0);
  }
  done = true;
  for (std::thread& caller : callers) caller.join();
}

// A handler of signals that forks within the call: the child is told, and does not wait for helpers
// that it does not have. The parent goes on.
void test_fork_inside_a_call() {
  for (const int num_threads : {1, 3}) {
    const pid_t parent = getpid();
    const auto caller = std::this_thread::get_id();
    std::atomic<pid_t> child{-1};
    std::atomic<int> done{0}, helping{0};
    const auto may_fork = [&] { return num_threads == 1 || helping > 0; };
    try {
      parallel_for(
          num_threads, 30,
          [&](std::int64_t, Watch& watch) {
            const bool helps = std::this_thread::get_id() != caller;
            helping += helps;
            const auto begin = Clock::now();  // a helper is at work when the fork comes
            while (helps ? child == -1 : !may_fork()) CHECK(milliseconds_since(begin) < 20000);
            work_for(milliseconds(10), &watch);
            ++done;
          },
          [&] {
            if (child == -1 && may_fork()) child = fork();
            if (child == 0) alarm(20);
            return false;
          });
    } catch (const std::runtime_error& error) {
      if (getpid() == parent) throw;
      check_sums(kChildThreads, 40);
      _exit(std::strstr(error.what(), "forked inside") != nullptr ? 7 : 8);
    }
    if (getpid() != parent) _exit(done == 30 ? 9 : 10);
    CHECK(done == 30);
    CHECK(status_of(child) == (num_threads == 1 ? 9 : 7));
  }
}

// Leaves with idle helpers, or with a job under way on a thread that nobody joins.
int exit_after_use(bool busy) {
  alarm(20);
  check_sums(3, 100);
  if (busy) {
    std::thread([] {
      for (;;) check_sums(2, 1000);
    }).detach();
    std::this_thread::sleep_for(milliseconds(50));
  }
  return 5;
}

void test_exit() {
  for (int repeat = 0; repeat < 5; ++repeat) {
    for (const char* how : {"exit", "exit-busy"}) {
      CHECK(status_of(in_child([how] { execl("/proc/self/exe", "pool_test", how, nullptr); })) ==
            5);
    }
  }
}

// Microseconds of the fastest of some calls, each after a pause in which the helpers fell asleep.
double call_after_pause(int num_threads, const physiofast::Task& task) {
  double best = 1e9;
  for (int repeat = 0; repeat < 300; ++repeat) {
    std::this_thread::sleep_for(milliseconds(1));
    const auto begin = Clock::now();
    parallel_for(num_threads, 2, task);
    best = std::min(best, milliseconds_since(begin) * 1e3);
  }
  return best;
}

double call_in_a_row(int num_threads, std::int64_t num_tasks) {
  const auto nothing = [](std::int64_t, Watch&) {};
  const int calls = 20000;
  const auto begin = Clock::now();
  for (int i = 0; i < calls; ++i) parallel_for(num_threads, num_tasks, nothing);
  return milliseconds_since(begin) * 1e3 / calls;
}

void measure() {
  const auto nothing = [](std::int64_t, Watch&) {};
  const auto millisecond = [](std::int64_t, Watch&) { work_for(milliseconds(1)); };
  for (const int num_threads : {1, 2}) {
    std::printf("%d threads, us: an empty call %.2f after a pause, %.2f in a row, %.3f per task;",
                num_threads, call_after_pause(num_threads, nothing), call_in_a_row(num_threads, 2),
                call_in_a_row(num_threads, 1000) / 1000);
    std::printf(" two tasks of 1 ms %.0f\n", call_after_pause(num_threads, millisecond));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string how = argc > 1 ? argv[1] : "test";
  if (how == "exit" || how == "exit-busy") return exit_after_use(how == "exit-busy");
  if (how == "measure") {
    measure();
    return 0;
  }
  test_threads_are_made_on_first_need();
  test_every_task_runs_once();
  test_several_threads_work();
  test_tasks_are_handed_out_in_order();
  test_the_first_exception_reaches_its_caller();
  test_an_exception_stops_a_long_task_of_another_thread();
  test_refusals();
  test_a_team_works();
  test_a_team_fails_and_stops();
  test_many_callers_at_once();
  test_the_stop_query();
  test_the_stop_query_while_waiting();
  test_a_stop_query_that_throws_or_calls();
  test_helpers_leave_signals_to_the_program();
  test_fork_after_use();
  test_fork_during_use();
  test_fork_inside_a_call();
  test_exit();
  std::puts("pool: all tests passed");
  return 0;
}
