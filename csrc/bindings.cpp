// The module. physiofast.engine has checked types and shapes; bounds are checked in C++.
#include "bindings.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "gather.hpp"
#include "wfdb.hpp"

namespace {

using physiofast::Span;
using physiofast::bindings::run_released;
using Samples = py::array_t<std::int16_t, 0>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;

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

void require_contiguous(const Samples& array, const char* name) {
  if ((array.flags() & py::array::c_style) == 0) {
    throw py::value_error(std::string(name) + " is not C-contiguous");
  }
}

void require_size(const Indices& array, py::ssize_t size, const char* name) {
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

void gather_rows(const py::sequence& planes, const Indices& plane, const Indices& start,
                 const Indices& length, Samples& out, const Indices& out_start) {
  std::vector<Samples> owners;  // keeps the arrays alive while the GIL is released
  std::vector<Span<const std::int16_t>> views;
  owners.reserve(planes.size());
  views.reserve(planes.size());
  for (const auto& item : planes) {
    owners.push_back(py::cast<Samples>(item));
    require_contiguous(owners.back(), "planes");
    views.push_back({owners.back().data(), owners.back().size()});
  }
  require_contiguous(out, "out");
  require_size(start, plane.size(), "start");
  require_size(length, plane.size(), "length");
  require_size(out_start, plane.size(), "out_start");
  const physiofast::RowTable rows{view(plane), view(start), view(length), view(out_start)};
  const Span<std::int16_t> target{out.mutable_data(), out.size()};
  run_released([&](const auto&) { physiofast::gather_rows(views, rows, target); });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "physiofast's C++ signal engine; call it through physiofast.engine.";
  py::register_exception<physiofast::BoundsError>(m, "BoundsError", PyExc_ValueError);
  register_file_error(m);
  physiofast::bindings::bind_condition(m);
  m.def("decode_interleaved", &decode_interleaved, py::arg("frames").noconvert(),
        py::arg("channels").noconvert(), py::arg("out").noconvert());
  m.def("gather_rows", &gather_rows, py::arg("planes"), py::arg("plane").noconvert(),
        py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("out").noconvert(),
        py::arg("out_start").noconvert());
}
