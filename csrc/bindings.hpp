// What the files that know Python share: bindings*.cpp, and no other.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "pool.hpp"

namespace py = pybind11;

namespace physiofast {
namespace bindings {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

inline void require(bool fits, const char* what) {
  if (!fits) throw py::value_error(std::string(what) + " does not fit the other arguments");
}

// The GIL is free while one of these lives.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() { take(); }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

  // Runs handlers of signals that came; true when one raised, such as KeyboardInterrupt.
  bool signalled() {
    take();
    const bool raised = PyErr_CheckSignals() != 0;
    state_ = PyEval_SaveThread();
    return raised;
  }

 private:
  // A daemon thread that asks for the GIL while the interpreter ends is unwound by Python up
  // to 3.13 (pthread_exit), which a destructor cannot survive: it waits for the end, as in
  // Python 3.14.
  void take() noexcept {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

  PyThreadState* state_;
};

// Runs work(stop) without the GIL; `stop` is for parallel_for. A signal's exception, such as
// KeyboardInterrupt, ends the work and is raised. Python handles signals on the main thread only,
// so others are not made to wait for the GIL.
template <class Work>
void run_released(Work&& work) {
  try {
    Released released;
    StopQuery stop;
    if (syscall(SYS_gettid) == getpid()) stop = [&released] { return released.signalled(); };
    std::forward<Work>(work)(stop);
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

// Sample sources, filters, flags and the choice of kernels.
void bind_condition(py::module_& m);

// Attention.
void bind_attention(py::module_& m);

// Rows of features, and the errors of predicted ones.
void bind_rows(py::module_& m);

// Plans of a batch.
void bind_plan(py::module_& m);

// Parsers of headers.
void bind_headers(py::module_& m);

}  // namespace bindings
}  // namespace physiofast
