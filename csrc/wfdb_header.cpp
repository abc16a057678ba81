#include "wfdb_header.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "header_text.hpp"
#include "limits.hpp"
#include "span.hpp"

namespace physiofast {
namespace {

constexpr std::string_view kBlanks = " \t";
// Those that Python's splitlines finds in ASCII, as wfdb reads headers. The bytes 0x85 and the
// like, which end lines in some encodings, are text.
constexpr std::string_view kLineEnds = "\n\r\v\f\x1c\x1d\x1e";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // editors on Windows write it
constexpr std::array kFormats{0, 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524};
constexpr std::int64_t kMostWhole = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostOffset = std::numeric_limits<std::int64_t>::max();

std::string list_of_formats() {
  std::string out;
  for (const int format : kFormats) out += (out.empty() ? "" : ", ") + std::to_string(format);
  return out;
}

// Names become file names beside the header: no folders.
bool is_name(std::string_view text) {
  const auto bad = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == '/' || c == 0x7f;
  };
  return !text.empty() && text != "." && text != ".." &&
         std::none_of(text.begin(), text.end(), bad);
}

int days_of(std::int64_t month, std::int64_t year) {
  constexpr int kDays[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return month == 2 && leap ? 29 : kDays[month - 1];
}

// Numbers that `separator` divides, each of at most `widths` digits; empty where they are not that.
std::vector<std::int64_t> numbers_of(std::string_view text, char separator,
                                     const std::array<std::size_t, 3>& widths) {
  std::vector<std::int64_t> out;
  for (const std::size_t width : widths) {
    const std::size_t end = std::min(text.find(separator), text.size());
    const std::string_view part = text.substr(0, end);
    if (part.empty() || part.size() > width || !is_digit(part[0])) return {};
    const auto number = whole_number(part);
    if (!number) return {};
    out.push_back(*number);
    if (end == text.size()) return out;
    text.remove_prefix(end + 1);
  }
  return {};
}

// A time of day: seconds, minutes before them, hours before these; in microseconds.
std::optional<std::int64_t> time_of(std::string_view text) {
  const std::size_t point = std::min(text.find('.'), text.size());
  std::int64_t fraction = 0;
  if (point < text.size()) {
    const std::string_view digits = text.substr(point + 1);
    if (digits.empty() || !std::all_of(digits.begin(), digits.end(), is_digit)) return std::nullopt;
    for (std::size_t i = 0; i < 6; ++i) {
      fraction = fraction * 10 + (i < digits.size() ? digits[i] - '0' : 0);
    }
  }
  const std::vector<std::int64_t> parts = numbers_of(text.substr(0, point), ':', {2, 2, 2});
  if (parts.empty()) return std::nullopt;
  std::int64_t seconds = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] > (parts.size() - i == 3 ? 23 : 59)) return std::nullopt;
    seconds = seconds * 60 + parts[i];
  }
  return seconds * 1'000'000 + fraction;
}

// Goes through the lines and fields of a header, and says what is wrong with them.
class Parser {
 public:
  Parser(std::string_view text, const std::string& path) : path_(path), rest_{text, 0} {
    if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
      rest_ = rest_.from(kByteOrderMark.size());
    }
  }

  WfdbHeader parse() {
    Field line;
    if (!next_line(line)) {
      throw FileError(path_, rest_.offset, "a record line", "an empty WFDB header");
    }
    const Lines stated = record_line(line);
    while (next_line(line)) {
      if (lines_ == stated.number) fail(line, "no line after the " + text_of(stated));
      ++lines_;
      header_.has_segments ? segment_line(line) : signal_line(line);
    }
    if (lines_ < stated.number) {
      throw FileError(path_, stated.offset, text_of(stated) + ", as many as stated here",
                      std::to_string(lines_));
    }
    if (header_.has_segments) check_lengths();
    return std::move(header_);
  }

 private:
  // How many lines shall follow the record line, and the byte at which that stands.
  struct Lines {
    std::int64_t number;
    std::int64_t offset;
  };

  [[noreturn]] void fail(Field field, const std::string& expected) const {
    throw FileError(path_, field.offset, expected,
                    field.text.empty() ? "nothing" : quoted(field.text));
  }

  std::string text_of(Lines lines) const {
    return std::to_string(lines.number) +
           (header_.has_segments ? " segment lines" : " signal lines");
  }

  // Which line an error is about, such as " of signal 2 (ECG)".
  std::string of() const {
    if (!in_line_) return "";
    std::string out = header_.has_segments ? " of segment " : " of signal ";
    out += std::to_string(lines_ - 1);
    return description_.empty() ? out : out + " (" + printable(description_) + ")";
  }

  std::int64_t whole(Field field, const char* what, std::int64_t low, std::int64_t high,
                     const std::string& note = "") const {
    const auto value = whole_number(field.text);
    if (value && *value >= low && *value <= high) return *value;
    fail(field, what + of() + ": a whole number of " + std::to_string(low) + " to " +
                    std::to_string(high) + note);
  }

  double number(Field field, const char* what) const {
    const auto value = decimal_number(field.text);
    if (value && std::isfinite(*value)) return *value;
    fail(field, what + of() + ": a number");
  }

  // A length or place in time, counted in frames.
  std::int64_t frames(Field field, const char* what) const {
    const auto most = static_cast<std::int64_t>(kMaxDurationS * header_.rate_hz);
    const auto value = whole_number(field.text);
    if (value && *value >= 0 && *value <= most) return *value;
    fail(field, what + of() + ": a whole number of 0 to " + std::to_string(most) + ", which is " +
                    general(kMaxDurationS) + " s at " + general(header_.rate_hz) + " Hz");
  }

  std::string_view name(Field field, const char* what) const {
    if (is_name(field.text)) return field.text;
    fail(field, what + of() + ": a name without control characters and folders");
  }

  // The next line that is neither empty nor a comment, without blanks at its ends.
  bool next_line(Field& line) {
    while (!rest_.text.empty()) {
      const std::size_t end = std::min(rest_.text.find_first_of(kLineEnds), rest_.text.size());
      line = stripped(rest_.from(0, end), kBlanks);
      rest_ = rest_.from(std::min(end + 1, rest_.text.size()));
      if (line.text.empty()) continue;
      if (line.text[0] != '#') return true;
      header_.comments.push_back(stripped(line, " \t#").text);
    }
    return false;
  }

  // Cuts off the part of `rest` before the first of `ends`, which stays; all of it where none is.
  static Field cut(Field& rest, std::string_view ends) {
    const std::size_t end = std::min(rest.text.find_first_of(ends), rest.text.size());
    const Field part = rest.from(0, end);
    rest = rest.from(end);
    return part;
  }

  // The next field of a line: empty at its end.
  static Field next_field(Field& line) {
    line = stripped(line, kBlanks);
    return cut(line, kBlanks);
  }

  void end_of(Field line, const char* what) const {
    line = stripped(line, kBlanks);
    if (!line.text.empty()) fail(line, what + of());
  }

  Lines record_line(Field line) {
    Field segments = next_field(line);
    header_.name = name(cut(segments, "/"), "record name");
    header_.has_segments = !segments.text.empty();
    const Field signals = next_field(line);
    header_.num_signals = whole(signals, "number of signals", 0, kMostWhole);
    if (Field rate = next_field(line); !rate.text.empty()) clock(rate);
    if (const Field length = next_field(line); !length.text.empty()) {
      length_ = length;
      header_.num_frames = frames(length, "number of samples per signal");
    }
    if (const Field time = next_field(line); !time.text.empty()) base_time(time);
    if (const Field date = next_field(line); !date.text.empty()) base_date(date);
    end_of(line, "the end of the record line");
    if (!header_.has_segments) return {header_.num_signals, signals.offset};
    segments = segments.from(1);
    return {whole(segments, "number of segments", 1, kMostWhole), segments.offset};
  }

  // FREQUENCY[/COUNTER FREQUENCY[(BASE COUNTER)]]
  void clock(Field field) {
    const Field rate = cut(field, "/");
    header_.rate_hz = number(rate, "sampling rate");
    if (!(header_.rate_hz >= kMinRateHz && header_.rate_hz <= kMaxRateHz)) {
      fail(rate, "sampling rate: " + general(kMinRateHz) + " to " + general(kMaxRateHz) + " Hz");
    }
    if (field.text.empty()) return;
    field = field.from(1);
    header_.counter_hz = number(cut(field, "("), "counter frequency");
    if (field.text.empty()) return;
    header_.base_counter =
        number(in_parentheses(field, "base counter value"), "base counter value");
    if (!field.text.empty()) fail(field, "the end of the field after the base counter value");
  }

  // What stands between the parentheses with which `field` begins; they are cut off.
  Field in_parentheses(Field& field, const char* what) const {
    const Field whole = field;
    field = field.from(1);
    const Field inside = cut(field, ")");
    if (field.text.empty()) fail(whole, what + of() + ": in parentheses");
    field = field.from(1);
    return inside;
  }

  void base_time(Field field) {
    header_.base_time_us = time_of(field.text);
    if (!header_.base_time_us) fail(field, "base time: HH:MM:SS, with or without a fraction");
  }

  // Old headers have 0/0/0 for a date that nobody knows.
  void base_date(Field field) {
    const std::vector<std::int64_t> parts = numbers_of(field.text, '/', {2, 2, 4});
    const bool complete = parts.size() == 3;
    if (complete && parts[0] == 0 && parts[1] == 0 && parts[2] == 0) return;
    const bool is_date = complete && field.text.size() - field.text.rfind('/') == 5 &&
                         parts[2] >= 1 && parts[1] >= 1 && parts[1] <= 12 && parts[0] >= 1 &&
                         parts[0] <= days_of(parts[1], parts[2]);
    if (!is_date) fail(field, "base date: DD/MM/YYYY");
    header_.base_date = WfdbDate{static_cast<int>(parts[0]), static_cast<int>(parts[1]),
                                 static_cast<int>(parts[2])};
  }

  void segment_line(Field line) {
    in_line_ = true;
    const Field first = next_field(line);
    const std::string_view segment = name(first, "name");
    const std::int64_t length = frames(next_field(line), "length");
    end_of(line, "the end of the line");
    header_.segments.push_back({segment, length});
  }

  void check_lengths() {
    in_line_ = false;
    const auto most = static_cast<std::int64_t>(kMaxDurationS * header_.rate_hz);
    std::int64_t sum = 0;
    for (const WfdbSegment& segment : header_.segments) sum += segment.num_frames;
    if (sum > most) {
      throw FileError(path_, rest_.offset,
                      "length of all segments: 0 to " + std::to_string(most) + ", which is " +
                          general(kMaxDurationS) + " s at " + general(header_.rate_hz) + " Hz",
                      std::to_string(sum));
    }
    if (header_.num_frames && *header_.num_frames != sum) {
      fail(length_, "number of samples per signal: " + std::to_string(sum) +
                        ", the sum of the segments' lengths");
    }
  }

  void signal_line(Field line) {
    in_line_ = true;
    description_ = {};
    std::array<Field, 8> fields;
    for (Field& field : fields) field = next_field(line);
    // wfdb, whose names users know, ends a description at a tab.
    Field description = stripped(line, kBlanks);
    description_ = stripped(cut(description, "\t"), kBlanks).text;
    WfdbSignal signal;
    signal.description = description_;
    signal.file = name(fields[0], "file name");
    format_of(signal, fields[1]);
    const std::optional<double> baseline = calibration_of(signal, fields[2]);
    if (!fields[3].text.empty()) {
      signal.adc_resolution = whole(fields[3], "ADC resolution", 0, kMostWhole);
    }
    signal.adc_zero = stored_value(fields[4], "ADC zero");
    signal.baseline = baseline.value_or(static_cast<double>(signal.adc_zero.value_or(0)));
    signal.initial_value = stored_value(fields[5], "initial value");
    signal.checksum = stored_value(fields[6], "checksum");
    if (!fields[7].text.empty()) signal.block_size = whole(fields[7], "block size", 0, kMostWhole);
    header_.signals.push_back(signal);
  }

  // FORMAT[xSAMPLES PER FRAME][:SKEW][+BYTE OFFSET], as MATLAB files have 16+24.
  void format_of(WfdbSignal& signal, Field field) {
    const Field number = cut(field, "x:+");
    const auto format = whole_number(number.text);
    if (!format || std::find(kFormats.begin(), kFormats.end(), *format) == kFormats.end()) {
      fail(number, "format" + of() + ": one of " + list_of_formats());
    }
    signal.format = *format;
    if (const Field part = option(field, 'x', ":+"); part.offset > 0) {
      signal.samples_per_frame = whole(part, "samples per frame", 1,
                                       static_cast<std::int64_t>(kMaxRateHz / header_.rate_hz),
                                       ", at most " + general(kMaxRateHz) + " Hz");
    }
    if (const Field part = option(field, ':', "+"); part.offset > 0)
      signal.skew = frames(part, "skew");
    if (const Field part = option(field, '+', ""); part.offset > 0) {
      signal.byte_offset = whole(part, "byte offset", 0, kMostOffset);
    }
    if (!field.text.empty()) fail(field, "the end of the format" + of());
    const auto first = formats_.emplace(signal.file, signal.format).first;
    if (first->second != signal.format) {
      fail(number, "format" + of() + ": " + std::to_string(first->second) +
                       ", which the signals before it have in that file");
    }
  }

  // What stands between `mark`, with which `field` may begin, and one of `ends`. Its offset is 0
  // where there is no mark.
  static Field option(Field& field, char mark, std::string_view ends) {
    if (field.text.empty() || field.text[0] != mark) return {"", 0};
    field = field.from(1);
    return cut(field, ends);
  }

  // Nothing for 0, which says that the signal is not calibrated.
  std::optional<double> gain_of(Field field) const {
    const std::optional<double> gain = decimal_number(field.text);
    if (gain && *gain == 0) return std::nullopt;
    const double magnitude = std::abs(gain.value_or(0));
    if (magnitude >= kMinGain && magnitude <= kMaxGain) return gain;
    fail(field, "gain" + of() + ": the digital steps per unit, a number of magnitude " +
                    general(kMinGain) + " to " + general(kMaxGain) + " or 0 (uncalibrated)");
  }

  // GAIN[(BASELINE)][/UNIT]; returns the baseline.
  std::optional<double> calibration_of(WfdbSignal& signal, Field field) const {
    std::optional<double> baseline;
    const Field gain = cut(field, "(/");
    if (!gain.text.empty()) signal.gain = gain_of(gain);
    if (!field.text.empty() && field.text[0] == '(') {
      const Field inside = in_parentheses(field, "baseline");
      if (is_whole(inside.text)) baseline = decimal_number(inside.text);
      if (!baseline || std::abs(*baseline) > kMaxBaseline) {
        fail(inside,
             "baseline" + of() + ": a whole number of magnitude up to " + general(kMaxBaseline));
      }
    }
    if (field.text.empty()) return baseline;
    if (field.text[0] != '/') fail(field, "unit" + of() + ": a / and a name");
    signal.unit = field.from(1).text;
    return baseline;
  }

  // A sample, or a sum of samples, as the file has them.
  std::optional<std::int64_t> stored_value(Field field, const char* what) const {
    if (field.text.empty()) return std::nullopt;
    return whole(field, what, -kMostWhole - 1, kMostWhole);
  }

  const std::string& path_;
  Field rest_;
  WfdbHeader header_;
  Field length_{"", 0};           // of the record, where the header states one
  std::int64_t lines_ = 0;        // after the record line
  bool in_line_ = false;          // the last of these is what errors are about
  std::string_view description_;  // of that
  std::unordered_map<std::string_view, std::int64_t> formats_;  // of each file
};

}  // namespace

WfdbHeader parse_wfdb_header(std::string_view text, const std::string& path) {
  return Parser(text, path).parse();
}

}  // namespace physiofast
