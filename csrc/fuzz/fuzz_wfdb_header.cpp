// A WFDB header of any bytes: refused at a byte of it, or within the ranges that the parser
// documents, the same each time, and the same again when its fields are written anew.
#include <cmath>
#include <string>
#include <string_view>

#include "../limits.hpp"
#include "../wfdb_header.hpp"
#include "header_common.hpp"

namespace {

using fuzz::exact;
using fuzz::lies_within;
using fuzz::require;
using physiofast::WfdbHeader;
using physiofast::WfdbSegment;
using physiofast::WfdbSignal;

constexpr std::int64_t kBytesPerByte = 256;  // as wfdb_header.hpp says
constexpr std::int64_t kMost32 = 2147483647;

bool within(const std::optional<std::int64_t>& value, std::int64_t low, std::int64_t high) {
  return !value || (*value >= low && *value <= high);
}

void check_signal(const WfdbSignal& s, double rate_hz, std::int64_t most, std::string_view text) {
  require(!s.file.empty() && s.file.find('/') == std::string_view::npos,
          "a file beside the header");
  require(s.format >= 0 && s.format <= 524, "format");
  require(s.samples_per_frame >= 1 && static_cast<double>(s.samples_per_frame) * rate_hz <=
                                          physiofast::kMaxRateHz * (1 + 1e-12),
          "samples per frame");
  require(s.skew >= 0 && s.skew <= most && s.byte_offset >= 0, "skew and byte offset");
  const double gain = std::abs(s.gain.value_or(200));
  require(gain >= physiofast::kMinGain && gain <= physiofast::kMaxGain, "gain");
  require(std::abs(s.baseline) <= physiofast::kMaxBaseline, "baseline");
  require(s.baseline == std::trunc(s.baseline), "a baseline is whole");
  require(within(s.adc_resolution, 0, kMost32) && within(s.block_size, 0, kMost32),
          "whole numbers");
  for (const auto& value : {s.adc_zero, s.initial_value, s.checksum}) {
    require(within(value, -kMost32 - 1, kMost32), "stored values");
  }
  require(
      lies_within(s.file, text) && lies_within(s.unit, text) && lies_within(s.description, text),
      "texts are views of the header");
}

void check(const WfdbHeader& h, std::string_view text) {
  require(h.rate_hz >= physiofast::kMinRateHz && h.rate_hz <= physiofast::kMaxRateHz, "rate");
  require(std::isfinite(h.counter_hz.value_or(0)) && std::isfinite(h.base_counter.value_or(0)),
          "counters");
  const auto most = static_cast<std::int64_t>(physiofast::kMaxDurationS * h.rate_hz);
  require(within(h.num_frames, 0, most), "length");
  require(within(h.base_time_us, 0, std::int64_t{86400} * 1000000 - 1), "time");
  require(!h.name.empty() && lies_within(h.name, text), "name");
  const auto signals = static_cast<std::int64_t>(h.signals.size());
  const auto segments = static_cast<std::int64_t>(h.segments.size());
  require(h.has_segments ? signals == 0 && segments > 0 : signals == h.num_signals && segments == 0,
          "as many lines as promised");
  // The shortest lines are "f 0" and "s 0", each after a line end.
  require((signals + segments) * 4 <= static_cast<std::int64_t>(text.size()), "lines have bytes");
  require(h.comments.size() <= text.size(), "comments have bytes");
  for (const WfdbSignal& signal : h.signals) check_signal(signal, h.rate_hz, most, text);
  std::int64_t sum = 0;
  for (const WfdbSegment& segment : h.segments) {
    require(segment.num_frames >= 0 && !segment.name.empty() && lies_within(segment.name, text),
            "segment");
    sum += segment.num_frames;
  }
  require(sum <= most && (!h.has_segments || h.num_frames.value_or(sum) == sum), "lengths add up");
}

std::string written(const std::optional<std::int64_t>& value) {
  return value ? " " + std::to_string(*value) : "";
}

std::string written(const WfdbSignal& s) {
  char baseline[48];
  std::snprintf(baseline, sizeof baseline, "(%.0f)", s.baseline);
  std::string out = std::string(s.file) + " " + std::to_string(s.format) + "x" +
                    std::to_string(s.samples_per_frame) + ":" + std::to_string(s.skew) + "+" +
                    std::to_string(s.byte_offset) + " " + (s.gain ? exact(*s.gain) : "") + baseline;
  if (!s.unit.empty()) out += "/" + std::string(s.unit);
  out += written(s.adc_resolution) + written(s.adc_zero) + written(s.initial_value) +
         written(s.checksum) + written(s.block_size);
  return out + " " + std::string(s.description) + "\n";
}

std::string written(const WfdbHeader& h) {
  // After a byte order mark another one is part of the name.
  std::string out = "\xef\xbb\xbf" + std::string(h.name);
  if (h.has_segments) out += "/" + std::to_string(h.segments.size());
  out += " " + std::to_string(h.num_signals) + " " + exact(h.rate_hz);
  if (h.counter_hz) out += "/" + exact(*h.counter_hz);
  if (h.base_counter) out += "(" + exact(*h.base_counter) + ")";
  out += written(h.num_frames);
  if (h.base_time_us) {
    char time[64];
    const long long us = *h.base_time_us, s = us / 1000000;
    std::snprintf(time, sizeof time, " %lld:%lld:%lld.%06lld", s / 3600, s / 60 % 60, s % 60,
                  us % 1000000);
    out += time;
  }
  if (h.base_date) {
    char date[64];
    std::snprintf(date, sizeof date, " %d/%d/%04d", h.base_date->day, h.base_date->month,
                  h.base_date->year);
    out += date;
  }
  out += "\n";
  for (const WfdbSignal& signal : h.signals) out += written(signal);
  for (const WfdbSegment& segment : h.segments) {
    out += std::string(segment.name) + " " + std::to_string(segment.num_frames) + "\n";
  }
  for (const std::string_view comment : h.comments) out += "#" + std::string(comment) + "\n";
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string path = "fuzzed";
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto parse = [](std::string_view header) {
    return [=] { return physiofast::parse_wfdb_header(header, path); };
  };
  const auto size_of = [](std::string_view header) {
    return static_cast<std::int64_t>(header.size());
  };
  std::string error, again;
  const auto found = fuzz::parse_once(parse(text), size_of(text), text, kBytesPerByte, error);
  const auto same = fuzz::parse_once(parse(text), size_of(text), text, kBytesPerByte, again);
  require(found.has_value() == same.has_value() && error == again, "the same answer each time");
  if (!found) return 0;
  check(*found, text);
  const std::string anew = written(*found);
  require(anew == written(*same), "the same fields each time");
  const auto reread = fuzz::parse_once(parse(anew), size_of(anew), anew, kBytesPerByte, error);
  require(reread.has_value(), "what is written anew is a header");
  require(anew == written(*reread), "the same fields when they are written anew");
  return 0;
}
