// An EDF or BDF header of any bytes, in a file of any size: refused at a byte of it, or within the
// ranges that the parser documents, the same each time, and the same again when its fields are
// written anew. The first 8 bytes of an input are the size of the file.
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>

#include "../edf_header.hpp"
#include "../limits.hpp"
#include "header_common.hpp"

namespace {

using fuzz::lies_within;
using fuzz::require;
using physiofast::EdfHeader;
using physiofast::EdfMember;

constexpr std::int64_t kBytesPerByte = 1;  // as edf_header.hpp says
constexpr std::size_t kWidths[] = {16, 80, 8, 8, 8, 8, 8, 80, 8, 32};

void check_member(const EdfMember& m, double duration_s, std::string_view text) {
  require(m.samples_per_record >= 1 && m.samples_per_record <= 99999999, "samples per record");
  require(lies_within(m.label, text) && lies_within(m.unit, text), "texts are views of the header");
  if (m.is_annotation) return;
  const double gain = std::abs(m.gain);
  require(gain >= physiofast::kMinGain && gain <= physiofast::kMaxGain, "gain");
  require(std::abs(m.baseline) <= physiofast::kMaxBaseline, "baseline");
  const double rate_hz = static_cast<double>(m.samples_per_record) / duration_s;
  require(rate_hz >= physiofast::kMinRateHz && rate_hz <= physiofast::kMaxRateHz, "rate");
}

void check(const EdfHeader& h, std::string_view text, std::int64_t file_size) {
  const auto count = static_cast<std::int64_t>(h.members.size());
  require(256 * (1 + count) <= static_cast<std::int64_t>(text.size()), "members have bytes");
  require(h.data_offset == 256 * (1 + count) && h.data_offset <= file_size, "data offset");
  std::int64_t samples = 0;
  for (const EdfMember& member : h.members) {
    check_member(member, h.record_duration_s, text);
    samples += member.samples_per_record;
  }
  const std::int64_t bytes = samples * (h.is_bdf ? 3 : 2);
  require(h.num_records >= 0 && h.stated_records >= -1, "data records");
  require(count == 0 || h.num_records >= h.stated_records, "as many data records as stated");
  require(h.data_offset + h.num_records * bytes + h.rest_bytes == file_size,
          "every byte of the file");
  require(h.rest_bytes >= 0 && (bytes == 0 || h.rest_bytes < bytes), "bytes after the records");
  const double seconds = h.record_duration_s * static_cast<double>(h.num_records);
  require(seconds >= 0 && seconds <= physiofast::kMaxDurationS, "duration");
  require(lies_within(h.patient, text) && lies_within(h.recording, text) && h.start.size() == 16,
          "texts are views of the header");
}

// Texts and numbers of the header that `h` was parsed from, at the places where the standard has
// them; what the parser does not look at is blank.
std::string written(const EdfHeader& h, std::string_view text) {
  const auto padded = [](std::string_view value, std::size_t width) {
    std::string out(value);
    out.resize(width, ' ');
    return out;
  };
  std::string out = h.is_bdf ? "\xff"
                               "BIOSEMI"
                             : "0       ";
  out += padded(h.patient, 80) + padded(h.recording, 80) + std::string(h.start);
  out += padded(std::to_string(h.data_offset), 8) + padded(h.is_discontinuous ? "EDF+D" : "", 44);
  out += padded(std::to_string(h.stated_records), 8) + std::string(text.substr(244, 8));
  out += padded(std::to_string(h.members.size()), 4);
  std::size_t place = 256;
  for (int field = 0; field < 10; ++field) {
    for (std::size_t i = 0; i < h.members.size(); ++i, place += kWidths[field]) {
      const EdfMember& m = h.members[i];
      const bool is_number = field >= 3 && field <= 6;
      std::string_view value = is_number ? text.substr(place, 8) : std::string_view();
      if (field == 0) value = m.label;
      if (field == 2) value = m.unit;
      const std::string samples = std::to_string(m.samples_per_record);
      if (field == 8) value = samples;
      out += padded(value, kWidths[field]);
    }
  }
  return out;
}

bool same(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

bool same(const EdfHeader& a, const EdfHeader& b) {
  bool equal = a.patient == b.patient && a.recording == b.recording && a.start == b.start &&
               a.is_bdf == b.is_bdf && a.is_discontinuous == b.is_discontinuous &&
               same(a.record_duration_s, b.record_duration_s) &&
               a.stated_records == b.stated_records && a.num_records == b.num_records &&
               a.rest_bytes == b.rest_bytes && a.data_offset == b.data_offset &&
               a.members.size() == b.members.size();
  for (std::size_t i = 0; equal && i < a.members.size(); ++i) {
    const EdfMember &m = a.members[i], &n = b.members[i];
    equal = m.label == n.label && m.unit == n.unit && same(m.gain, n.gain) &&
            same(m.baseline, n.baseline) && m.digital_min == n.digital_min &&
            m.digital_max == n.digital_max && m.samples_per_record == n.samples_per_record &&
            m.is_annotation == n.is_annotation && m.unusable == n.unusable;
  }
  return equal;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string path = "fuzzed";
  std::int64_t stated = 0;
  if (size < sizeof stated) return -1;
  std::memcpy(&stated, data, sizeof stated);
  const std::string_view text(reinterpret_cast<const char*>(data) + sizeof stated,
                              size - sizeof stated);
  // A file has its header, and fewer bytes than a number of 63 bits.
  const auto least = static_cast<std::int64_t>(text.size());
  const std::int64_t file_size = least + (stated & 0x3fffffffffffffff) / 2;
  const auto parse = [&](std::string_view header) {
    return [&, header] { return physiofast::parse_edf_header(header, file_size, path); };
  };
  std::string error, again;
  const auto found = fuzz::parse_once(parse(text), file_size, text, kBytesPerByte, error);
  const auto repeated = fuzz::parse_once(parse(text), file_size, text, kBytesPerByte, again);
  require(found.has_value() == repeated.has_value() && error == again, "the same answer each time");
  if (!found) return 0;
  check(*found, text, file_size);
  require(same(*found, *repeated), "the same fields each time");
  const std::string anew = written(*found, text);
  const auto reread = fuzz::parse_once(parse(anew), file_size, anew, kBytesPerByte, error);
  require(reread && same(*found, *reread), "the same fields when they are written anew");
  return 0;
}
