// The only file that knows Python. engine.py has checked types and shapes; bounds are checked in
// C++.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gather.hpp"
#include "pool.hpp"
#include "wfdb.hpp"

namespace py = pybind11;

namespace {

using physiofast::Span;
using Samples = py::array_t<std::int16_t, 0>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;

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
    physiofast::StopQuery stop;
    if (syscall(SYS_gettid) == getpid()) stop = [&released] { return released.signalled(); };
    std::forward<Work>(work)(stop);
  } catch (const physiofast::Interrupted&) {
    throw py::error_already_set();
  }
}

py::object text(const std::string& bytes) {  // a file's name need not be UTF-8
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeFSDefaultAndSize(bytes.data(), static_cast<py::ssize_t>(bytes.size())));
}

// FileError in Python: a ValueError with `path`, `byte_offset`, `expected` and `found`.
void register_file_error(py::module_& m) {
  static py::handle type;  // lives as long as the process, as the translator does
  type = py::exception<physiofast::FileError>(m, "FileError", PyExc_ValueError).release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const physiofast::FileError& error) {
      const py::object value = type(text(error.what()));
      value.attr("path") = text(error.path);
      value.attr("byte_offset") = error.byte_offset;
      value.attr("expected") = text(error.expected);
      value.attr("found") = text(error.found);
      PyErr_SetObject(type.ptr(), value.ptr());
    }
  });
}

Span<const std::int64_t> view(const Indices& array) { return {array.data(), array.size()}; }

void require_contiguous(const py::array& array, const char* name) {
  if ((array.flags() & py::array::c_style) == 0) {
    throw py::value_error(std::string(name) + " is not C-contiguous");
  }
}

void require_size(const py::array& array, py::ssize_t size, const char* name) {
  if (array.ndim() != 1 || array.size() != size) {
    throw py::value_error(std::string(name) + " needs shape [" + std::to_string(size) +
                          "] like plane, found size " + std::to_string(array.size()));
  }
}

void decode_interleaved(const Samples& frames, const Indices& channels, Samples& out) {
  if (frames.ndim() != 2) throw py::value_error("frames needs 2 dimensions");
  if (frames.size() > 0 && frames.shape(1) > 1 && frames.strides(1) != sizeof(std::int16_t)) {
    throw py::value_error("the samples of a frame are not adjacent");
  }
  require_contiguous(out, "out");
  const auto width = static_cast<py::ssize_t>(sizeof(std::int16_t));
  const physiofast::Frames source{frames.data(), frames.shape(0), frames.shape(1),
                                  frames.strides(0) / width};
  const Span<const std::int64_t> chosen = view(channels);
  const Span<std::int16_t> target{out.mutable_data(), out.size()};
  run_released([&](const auto&) { physiofast::decode_interleaved(source, chosen, target); });
}

using Factors = py::array_t<float, py::array::c_style>;

struct GatherCall {
  std::vector<Samples> owners;  // keeps the arrays alive while the GIL is released
  physiofast::Planes planes;
  physiofast::RowTable rows;
};

GatherCall gather_call(const py::sequence& planes, const Indices& plane, const Indices& start,
                       const Indices& length, const Indices& out_start) {
  require_size(start, plane.size(), "start");
  require_size(length, plane.size(), "length");
  require_size(out_start, plane.size(), "out_start");
  GatherCall call{{}, {}, {view(plane), view(start), view(length), view(out_start)}};
  call.owners.reserve(planes.size());
  call.planes.reserve(planes.size());
  for (const auto& item : planes) {
    call.owners.push_back(py::cast<Samples>(item));
    require_contiguous(call.owners.back(), "planes");
    call.planes.push_back({call.owners.back().data(), call.owners.back().size()});
  }
  return call;
}

void gather_rows(const py::sequence& planes, const Indices& plane, const Indices& start,
                 const Indices& length, Samples& out, const Indices& out_start, int num_threads) {
  require_contiguous(out, "out");
  const GatherCall call = gather_call(planes, plane, start, length, out_start);
  const Span<std::int16_t> target{out.mutable_data(), out.size()};
  run_released([&](const auto& stop) {
    physiofast::gather_rows(call.planes, call.rows, target, num_threads, stop);
  });
}

void gather_values(const py::sequence& planes, const Indices& plane, const Indices& start,
                   const Indices& length, py::array& out, const Indices& out_start,
                   const Factors& scale, const Factors& shift, int num_threads) {
  require_contiguous(out, "out");
  require_size(scale, plane.size(), "scale");
  require_size(shift, plane.size(), "shift");
  const GatherCall call = gather_call(planes, plane, start, length, out_start);
  const physiofast::RowScales scales{{scale.data(), scale.size()}, {shift.data(), shift.size()}};
  const auto run = [&](auto target) {
    run_released([&](const auto& stop) {
      physiofast::gather_rows(call.planes, call.rows, scales, target, num_threads, stop);
    });
  };
  if (out.dtype().kind() == 'f' && out.itemsize() == sizeof(float)) {
    run(Span<float>{static_cast<float*>(out.mutable_data()), out.size()});
  } else if (out.dtype().kind() == 'f' && out.itemsize() == sizeof(physiofast::Half)) {
    run(Span<physiofast::Half>{static_cast<physiofast::Half*>(out.mutable_data()), out.size()});
  } else {
    throw py::value_error("out needs float32 or float16");
  }
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "physiofast's C++ signal engine; call it through physiofast.engine.";
  py::register_exception<physiofast::BoundsError>(m, "BoundsError", PyExc_ValueError);
  register_file_error(m);
  m.def("decode_interleaved", &decode_interleaved, py::arg("frames").noconvert(),
        py::arg("channels").noconvert(), py::arg("out").noconvert());
  m.def("gather_rows", &gather_rows, py::arg("planes"), py::arg("plane").noconvert(),
        py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("out").noconvert(),
        py::arg("out_start").noconvert(), py::arg("num_threads"));
  m.def("gather_values", &gather_values, py::arg("planes"), py::arg("plane").noconvert(),
        py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("out").noconvert(),
        py::arg("out_start").noconvert(), py::arg("scale").noconvert(),
        py::arg("shift").noconvert(), py::arg("num_threads"));
}
