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

void write(std::string& out, const std::optional<std::int64_t>& value) {
  if (value) out.append(" ").append(std::to_string(*value));
}

void write(std::string& out, const WfdbSignal& s) {
  char format[128];
  std::snprintf(format, sizeof format,
                " %lld"
                "x%lld:%lld+%lld ",
                static_cast<long long>(s.format), static_cast<long long>(s.samples_per_frame),
                static_cast<long long>(s.skew), static_cast<long long>(s.byte_offset));
  char baseline[48];
  std::snprintf(baseline, sizeof baseline, "(%.0f)", s.baseline);
  out.append(s.file).append(format);
  if (s.gain) out.append(exact(*s.gain));
  out.append(baseline);
  if (!s.unit.empty()) out.append("/").append(s.unit);
  for (const auto& value :
       {s.adc_resolution, s.adc_zero, s.initial_value, s.checksum, s.block_size}) {
    write(out, value);
  }
  out.append(" ").append(s.description).append("\n");
}

void write_record_line(std::string& out, const WfdbHeader& h) {
  // After a byte order mark another one is part of the name.
  out.append("\xef\xbb\xbf").append(h.name);
  if (h.has_segments) out.append("/").append(std::to_string(h.segments.size()));
  write(out, h.num_signals);
  out.append(" ").append(exact(h.rate_hz));
  if (h.counter_hz) out.append("/").append(exact(*h.counter_hz));
  if (h.base_counter) out.append("(").append(exact(*h.base_counter)).append(")");
  write(out, h.num_frames);
  char text[96];
  if (h.base_time_us) {
    const long long us = *h.base_time_us, s = us / 1000000;
    std::snprintf(text, sizeof text, " %lld:%lld:%lld.%06lld", s / 3600, s / 60 % 60, s % 60,
                  us % 1000000);
    out.append(text);
  }
  if (h.base_date) {
    std::snprintf(text, sizeof text, " %d/%d/%04d", h.base_date->day, h.base_date->month,
                  h.base_date->year);
    out.append(text);
  }
}

std::string written(const WfdbHeader& h) {
  std::string out;
  out.reserve(2048);
  write_record_line(out, h);
  out.append("\n");
  for (const WfdbSignal& signal : h.signals) write(out, signal);
  for (const WfdbSegment& segment : h.segments) {
    out.append(segment.name);
    write(out, segment.num_frames);
    out.append("\n");
  }
  for (const std::string_view comment : h.comments) out.append("#").append(comment).append("\n");
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
