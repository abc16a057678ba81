// Parsers of headers. What they find goes to Python as tuples, whose fields
// physiofast.engine.wfdb_header and edf_header name.
#include <pybind11/stl.h>

#include <string>
#include <string_view>

#include "bindings.hpp"
#include "edf_header.hpp"
#include "wfdb_header.hpp"

namespace {

using physiofast::EdfHeader;
using physiofast::EdfMember;
using physiofast::WfdbHeader;
using physiofast::WfdbSegment;
using physiofast::WfdbSignal;
using Text = std::string_view;

template <class Items, class Make>
py::tuple tuple_of(const Items& items, Make make) {
  py::tuple out(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) out[i] = make(items[i]);
  return out;
}

bool is_utf8(Text text) {
  const auto decoded = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
  if (!decoded) PyErr_Clear();
  return static_cast<bool>(decoded);
}

// Makes str of a header's texts, which are UTF-8 or else Latin-1, the header as a whole.
class Decoder {
 public:
  explicit Decoder(Text header)
      : decode_(is_utf8(header) ? PyUnicode_DecodeUTF8 : PyUnicode_DecodeLatin1) {}

  py::object operator()(Text text) const {
    auto out = py::reinterpret_steal<py::object>(
        decode_(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
    if (!out) throw py::error_already_set();
    return out;
  }

 private:
  PyObject* (*decode_)(const char*, Py_ssize_t, const char*);
};

py::tuple signal_fields(const WfdbSignal& s, const Decoder& str) {
  return py::make_tuple(str(s.file), s.format, s.samples_per_frame, s.skew, s.byte_offset, s.gain,
                        s.baseline, str(s.unit), s.adc_resolution, s.adc_zero, s.initial_value,
                        s.checksum, s.block_size, str(s.description));
}

py::tuple wfdb_header(const py::bytes& text, const std::string& path) {
  const Text view = text;
  const WfdbHeader header = physiofast::parse_wfdb_header(view, path);
  const Decoder str(view);
  py::object date = py::none();
  if (header.base_date) {
    const physiofast::WfdbDate& found = *header.base_date;
    date = py::make_tuple(found.day, found.month, found.year);
  }
  const auto signal = [&](const WfdbSignal& s) { return signal_fields(s, str); };
  const auto segment = [&](const WfdbSegment& s) {
    return py::make_tuple(str(s.name), s.num_frames);
  };
  return py::make_tuple(str(header.name), header.has_segments, header.num_signals, header.rate_hz,
                        header.counter_hz, header.base_counter, header.num_frames,
                        header.base_time_us, date, tuple_of(header.signals, signal),
                        tuple_of(header.segments, segment), tuple_of(header.comments, str));
}

// The standard says ASCII, real headers are Latin-1.
py::str latin1(Text text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeLatin1(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
}

py::tuple edf_header(const py::bytes& text, std::int64_t file_size, const std::string& path) {
  const EdfHeader header = physiofast::parse_edf_header(Text(text), file_size, path);
  const auto member = [](const EdfMember& m) {
    return py::make_tuple(latin1(m.label), latin1(m.unit), m.gain, m.baseline, m.digital_min,
                          m.digital_max, m.samples_per_record, m.is_annotation, m.unusable);
  };
  return py::make_tuple(latin1(header.patient), latin1(header.recording), latin1(header.start),
                        header.is_bdf, header.is_discontinuous, header.record_duration_s,
                        header.stated_records, header.num_records, header.rest_bytes,
                        header.data_offset, tuple_of(header.members, member));
}

}  // namespace

void physiofast::bindings::bind_headers(py::module_& m) {
  m.def("parse_wfdb_header", &wfdb_header, py::arg("text"), py::arg("path"));
  m.def("parse_edf_header", &edf_header, py::arg("text"), py::arg("file_size"), py::arg("path"));
}
