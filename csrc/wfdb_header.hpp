// The text of a WFDB header. Format: https://physionet.org/physiotools/wag/header-5.htm;
// physiofast/engine/wfdb_header.py, the twin, says what is decided where that leaves room.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace physiofast {

// One signal line; texts are views of the header. Where a field has a default, it has it here.
struct WfdbSignal {
  std::string_view file;
  std::int64_t format = 0;
  std::int64_t samples_per_frame = 1;
  std::int64_t skew = 0;
  std::int64_t byte_offset = 0;
  std::optional<double> gain;  // absent or 0: 200, which the caller may want to say
  double baseline = 0;         // absent: the ADC zero
  std::string_view unit;       // empty: mV
  std::optional<std::int64_t> adc_resolution;
  std::optional<std::int64_t> adc_zero;
  std::optional<std::int64_t> initial_value;
  std::optional<std::int64_t> checksum;
  std::optional<std::int64_t> block_size;
  std::string_view description;  // empty where there is none
};

// One segment line; the name of a gap is ~.
struct WfdbSegment {
  std::string_view name;
  std::int64_t num_frames;
};

struct WfdbDate {
  int day;
  int month;
  int year;
};

// A header has signals, or else segments.
struct WfdbHeader {
  std::string_view name;
  bool has_segments = false;
  std::int64_t num_signals = 0;
  double rate_hz = 250;
  std::optional<double> counter_hz;
  std::optional<double> base_counter;
  std::optional<std::int64_t> num_frames;
  std::optional<std::int64_t> base_time_us;  // since midnight
  std::optional<WfdbDate> base_date;
  std::vector<WfdbSignal> signals;
  std::vector<WfdbSegment> segments;
  std::vector<std::string_view> comments;  // without their #
};

// What it returns refers to `text`. Memory: at most 256 bytes for each byte of `text`, whatever
// that says. Throws FileError, with `path`, at the first field that cannot be.
WfdbHeader parse_wfdb_header(std::string_view text, const std::string& path);

}  // namespace physiofast
