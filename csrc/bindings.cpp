// The module. physiofast.engine has checked types and shapes; bounds are checked in C++.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "decode.hpp"
#include "gather.hpp"
#include "memory.hpp"
#include "pool.hpp"
#include "signalfile.hpp"

namespace {

using physiofast::Calibration;
using physiofast::KeptMemory;
using physiofast::Run;
using physiofast::SignalFile;
using physiofast::Span;
using physiofast::bindings::Released;
using physiofast::bindings::run_released;
using Samples = py::array_t<std::int16_t, 0>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;
using Checksums = py::array_t<std::uint16_t, py::array::c_style>;
using Values = py::array_t<double, py::array::c_style>;

Span<const std::int64_t> view(const Indices& array) { return {array.data(), array.size()}; }

void require_contiguous(const py::array& array, const char* name) {
  if ((array.flags() & py::array::c_style) == 0) {
    throw py::value_error(std::string(name) + " is not C-contiguous");
  }
}

// As many elements as the array `like` has.
void require_size(const py::array& array, py::ssize_t size, const char* name, const char* like) {
  if (array.ndim() != 1 || array.size() != size) {
    throw py::value_error(std::string(name) + " needs shape [" + std::to_string(size) + "] like " +
                          like + ", found size " + std::to_string(array.size()));
  }
}

// An array of memory that belongs to `owner`. Strides are in elements, as PyTorch counts them.
py::array lend(std::uintptr_t address, std::vector<py::ssize_t> shape,
               std::vector<py::ssize_t> strides, const py::dtype& type, const py::object& owner) {
  for (py::ssize_t& stride : strides) stride *= type.itemsize();
  return py::array(type, std::move(shape), std::move(strides),
                   reinterpret_cast<const void*>(address), owner);
}

// Bytes [size] of kept memory, which goes back when the array is freed. The GIL guards it.
py::array empty(std::size_t size) {
#ifdef __SANITIZE_ADDRESS__  // sees nothing of memory that is mapped here
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(size));
#else
  static auto* memory = new KeptMemory;  // outlives every array
  struct Held {
    KeptMemory::Block block;
  };
  auto held = std::make_unique<Held>(Held{memory->take(size)});
  void* data = held->block.data;
  py::capsule owner(held.get(), [](void* pointer) {
    const std::unique_ptr<Held> mine(static_cast<Held*>(pointer));
    memory->give(mine->block);
  });
  held.release();
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(size), static_cast<std::uint8_t*>(data),
                                   owner);
#endif
}

std::unique_ptr<SignalFile> open_signal_file(const std::string& path, int format,
                                             std::vector<std::int64_t> samples_per_frame,
                                             std::int64_t num_frames, std::int64_t byte_offset,
                                             std::vector<std::int32_t> initial_values) {
  const Released released;
  return std::make_unique<SignalFile>(
      path, physiofast::SignalLayout{physiofast::format_from(format), byte_offset,
                                     std::move(samples_per_frame), num_frames,
                                     std::move(initial_values)});
}

std::vector<Calibration> calibrations_of(const py::object& columns) {
  if (columns.is_none()) return {};
  const auto [gain, baseline, invalid] = columns.cast<std::tuple<Values, Values, Indices>>();
  require_size(invalid, gain.size(), "invalid", "gain");
  if (baseline.size() != gain.size()) throw py::value_error("baseline needs the shape of gain");
  std::vector<Calibration> out;
  for (py::ssize_t i = 0; i < gain.size(); ++i) {
    out.push_back({gain.data()[i], baseline.data()[i], invalid.data()[i]});
  }
  return out;
}

// Calls f with a value of the array's type, one of those that samples may have.
template <class F>
void with_type(const py::array& out, F f) {
  if (py::isinstance<py::array_t<std::int16_t>>(out)) return f(std::int16_t{});
  if (py::isinstance<py::array_t<std::int32_t>>(out)) return f(std::int32_t{});
  if (py::isinstance<py::array_t<float>>(out)) return f(float{});
  if (py::isinstance<py::array_t<double>>(out)) return f(double{});
  throw py::value_error("out needs int16, int32, float32 or float64");
}

template <class T>
void read_unlocked(const SignalFile& file, const std::vector<Run<T>>& runs,
                   const std::vector<Calibration>& calibrations, int num_threads) {
  run_released([&](const auto& stop) {
    physiofast::decode<T>(file, {runs.data(), static_cast<std::int64_t>(runs.size())},
                          {calibrations.data(), static_cast<std::int64_t>(calibrations.size())},
                          num_threads, stop);
  });
}

void read_planes(const SignalFile& file, const Indices& channels, std::int64_t first,
                 std::int64_t count, py::array& out, const py::object& calibrations,
                 int num_threads) {
  if (out.ndim() != 2 || out.shape(0) != channels.size() || out.shape(1) != count ||
      (out.shape(0) > 0 && count > 1 && out.strides(1) != out.itemsize())) {
    throw py::value_error("out needs one contiguous row of count samples per channel");
  }
  with_type(out, [&](auto zero) {
    using T = decltype(zero);
    std::vector<Run<T>> runs;
    auto* row = static_cast<char*>(out.mutable_data());
    for (py::ssize_t i = 0; i < channels.size(); ++i, row += out.strides(0)) {
      runs.push_back({channels.data()[i], first, count, reinterpret_cast<T*>(row), nullptr});
    }
    read_unlocked(file, runs, calibrations_of(calibrations), num_threads);
  });
}

void read_runs(const SignalFile& file, const Indices& channels, const Indices& first,
               const std::vector<py::array>& out, const py::object& calibrations,
               std::optional<Checksums> checksums, int num_threads) {
  require_size(channels, static_cast<py::ssize_t>(out.size()), "channels", "out");
  if (checksums && checksums->size() != channels.size()) {
    throw py::value_error("checksums needs the shape of channels");
  }
  std::uint16_t* sum = checksums ? checksums->mutable_data() : nullptr;
  require_size(first, channels.size(), "first", "channels");
  if (out.empty()) return;
  with_type(out[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<Run<T>> runs;
    for (std::size_t i = 0; i < out.size(); ++i) {
      auto array = out[i].cast<py::array_t<T, py::array::c_style>>();
      if (array.ptr() != out[i].ptr() || array.ndim() != 1) {
        throw py::value_error("outputs need be 1-D, contiguous and of one type");
      }
      runs.push_back({channels.data()[i], first.data()[i], array.size(), array.mutable_data(),
                      sum == nullptr ? nullptr : sum + i});
    }
    read_unlocked(file, runs, calibrations_of(calibrations), num_threads);
  });
}

void read_windows(const SignalFile& file, const Indices& channels, const Indices& starts,
                  std::int64_t length, py::array& out, const py::object& calibrations,
                  int num_threads) {
  require_contiguous(out, "out");
  if (out.ndim() != 3 || out.shape(0) != starts.size() || out.shape(1) != channels.size() ||
      out.shape(2) != length) {
    throw py::value_error("out needs shape [starts, channels, length]");
  }
  const std::vector<Calibration> known = calibrations_of(calibrations);
  with_type(out, [&](auto zero) {
    using T = decltype(zero);
    auto* target = static_cast<T*>(out.mutable_data());
    run_released([&](const auto& stop) {
      physiofast::decode_windows<T>(file, view(channels), view(starts), length, target,
                                    {known.data(), static_cast<std::int64_t>(known.size())},
                                    num_threads, stop);
    });
  });
}

std::uint16_t checksum(const py::array& samples) {
  if (samples.ndim() != 1 || (samples.flags() & py::array::c_style) == 0) {
    throw py::value_error("samples need be 1-D and C-contiguous");
  }
  const Released released;
  if (samples.itemsize() == sizeof(std::int16_t)) {
    return physiofast::checksum(
        Span<const std::int16_t>{static_cast<const std::int16_t*>(samples.data()), samples.size()});
  }
  return physiofast::checksum(
      Span<const std::int32_t>{static_cast<const std::int32_t*>(samples.data()), samples.size()});
}

// FileError keeps its parts in Python; paths are bytes there that need not be UTF-8.
void raise_file_error(const physiofast::FileError& error) {
  const py::object type = py::module_::import("physiofast.engine.native").attr("FileError");
  const auto path = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefaultAndSize(
      error.path.data(), static_cast<Py_ssize_t>(error.path.size())));
  const py::tuple parts = py::make_tuple(path, error.byte_offset, error.expected, error.found);
  PyErr_SetObject(type.ptr(), parts.ptr());
}

void raise_os_error(const std::filesystem::filesystem_error& error) {
  const std::string& name = error.path1().native();
  const auto path = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<Py_ssize_t>(name.size())));
  const py::tuple parts = py::make_tuple(error.code().value(), error.code().message(), path);
  PyErr_SetObject(PyExc_OSError, parts.ptr());
}

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const physiofast::FileError& error) {
    raise_file_error(error);
  } catch (const std::filesystem::filesystem_error& error) {
    raise_os_error(error);
  }
}

using Factors = py::array_t<float, py::array::c_style>;

struct GatherCall {
  std::vector<Samples> owners;  // keeps the arrays alive while the GIL is released
  physiofast::Planes planes;
  physiofast::RowTable rows;
};

GatherCall gather_call(const py::sequence& planes, const Indices& plane, const Indices& start,
                       const Indices& length, const Indices& out_start) {
  require_size(start, plane.size(), "start", "plane");
  require_size(length, plane.size(), "length", "plane");
  require_size(out_start, plane.size(), "out_start", "plane");
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
  require_size(scale, plane.size(), "scale", "plane");
  require_size(shift, plane.size(), "shift", "plane");
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
  py::register_exception_translator(&translate);
  // Before the functions that take them, whose signatures name them then.
  py::class_<physiofast::Workers>(m, "Workers")
      .def(py::init([](int count, std::uintptr_t start) {
             return physiofast::Workers(count, reinterpret_cast<physiofast::TeamStart>(start));
           }),
           py::arg("count"), py::arg("start") = 0);
  physiofast::bindings::bind_attention(m);
  physiofast::bindings::bind_rows(m);
  physiofast::bindings::bind_plan(m);
  physiofast::bindings::bind_condition(m);
  physiofast::bindings::bind_headers(m);
  py::class_<SignalFile, physiofast::SampleSource, std::shared_ptr<SignalFile>>(m, "SignalFile")
      .def(py::init(&open_signal_file), py::arg("path"), py::arg("format"),
           py::arg("samples_per_frame"), py::arg("num_frames"), py::arg("byte_offset"),
           py::arg("initial_values"))
      .def("read_planes", &read_planes, py::arg("channels").noconvert(), py::arg("first"),
           py::arg("count"), py::arg("out"), py::arg("calibrations"), py::arg("num_threads"))
      .def("read_runs", &read_runs, py::arg("channels").noconvert(), py::arg("first").noconvert(),
           py::arg("out"), py::arg("calibrations"), py::arg("checksums").noconvert(),
           py::arg("num_threads"))
      .def("read_windows", &read_windows, py::arg("channels").noconvert(),
           py::arg("starts").noconvert(), py::arg("length"), py::arg("out"),
           py::arg("calibrations"), py::arg("num_threads"));
  m.def("empty", &empty, py::arg("size"));
  m.def("lend", &lend, py::arg("address"), py::arg("shape"), py::arg("strides"), py::arg("dtype"),
        py::arg("owner"));
  m.def("checksum", &checksum, py::arg("samples"));
  m.def("gather_rows", &gather_rows, py::arg("planes"), py::arg("plane").noconvert(),
        py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("out").noconvert(),
        py::arg("out_start").noconvert(), py::arg("num_threads"));
  m.def("gather_values", &gather_values, py::arg("planes"), py::arg("plane").noconvert(),
        py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("out").noconvert(),
        py::arg("out_start").noconvert(), py::arg("scale").noconvert(),
        py::arg("shift").noconvert(), py::arg("num_threads"));
}
