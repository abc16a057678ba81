#include "edf_header.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "header_text.hpp"
#include "limits.hpp"
#include "span.hpp"

namespace physiofast {
namespace {

using namespace std::string_view_literals;

// Latin-1's, as Python strips them, and NUL: the standard says ASCII, real headers have more.
constexpr std::string_view kBlanks = "\0 \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0"sv;
constexpr std::int64_t kFixed = 256;  // the header without signals; as much for each signal
constexpr std::int64_t kAnyNumber = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

// A field that every signal has, side by side: bytes for each signal before it, and its own.
struct Column {
  std::int64_t offset, width;
};
constexpr Column kLabel{0, 16}, kUnit{96, 8}, kPhysicalMin{104, 8}, kPhysicalMax{112, 8},
    kDigitalMin{120, 8}, kDigitalMax{128, 8}, kSamples{216, 8};

// a + b * c, or the largest number where that is larger; none is negative.
std::int64_t add_product(std::int64_t a, std::int64_t b, std::int64_t c) {
  std::int64_t product, sum;
  if (__builtin_mul_overflow(b, c, &product)) return kMost;
  return __builtin_add_overflow(a, product, &sum) ? kMost : sum;
}

class Parser {
 public:
  Parser(std::string_view text, std::int64_t file_size, const std::string& path)
      : text_(text), file_size_(file_size), path_(path) {}

  EdfHeader parse() {
    check_kind();
    read_members();
    read_clock();
    count_records();
    for (std::int64_t i = 0; i < count_; ++i) calibrate(i);
    return std::move(header_);
  }

 private:
  Field raw(std::int64_t offset, std::int64_t length) const {
    return Field{text_, 0}.from(static_cast<std::size_t>(offset), static_cast<std::size_t>(length));
  }

  std::string_view text(std::int64_t offset, std::int64_t length) const {
    return stripped(raw(offset, length), kBlanks).text;
  }

  // Where a field of a signal begins.
  std::int64_t at(const Column& column, std::int64_t signal) const {
    return kFixed + count_ * column.offset + column.width * signal;
  }

  std::string_view text(const Column& column, std::int64_t signal) const {
    return text(at(column, signal), column.width);
  }

  [[noreturn]] void fail(Field field, const std::string& expected) const {
    throw FileError(path_, field.offset, expected, quoted(field.text));
  }

  std::int64_t whole(std::int64_t offset, std::int64_t length,
                     std::int64_t least = kAnyNumber) const {
    const auto value = whole_number(text(offset, length));
    if (value && *value >= least) return *value;
    const std::string limit =
        least == kAnyNumber ? "" : " of " + std::to_string(least) + " or more";
    fail(raw(offset, length), "a whole number" + limit);
  }

  std::int64_t whole_of(const Column& column, std::int64_t signal,
                        std::int64_t least = kAnyNumber) const {
    return whole(at(column, signal), column.width, least);
  }

  // Some recorders write a comma for the point.
  double number(std::int64_t offset, std::int64_t length) const {
    std::string spelt(text(offset, length));
    if (const std::size_t comma = spelt.find(','); comma != std::string::npos) spelt[comma] = '.';
    const auto value = decimal_number(spelt);
    if (value && std::isfinite(*value)) return *value;
    fail(raw(offset, length), "a number");
  }

  double number(const Column& column, std::int64_t signal) const {
    return number(at(column, signal), column.width);
  }

  void check_kind() {
    const std::string_view kind = text_.substr(0, 8);
    header_.is_bdf = kind ==
                     "\xff"
                     "BIOSEMI";
    const bool is_edf = kind.substr(0, 1) == "0" && stripped({kind, 0}, kBlanks).text == "0";
    if (text_.size() < kFixed || !(is_edf || header_.is_bdf)) {
      throw FileError(path_, 0, "an EDF or BDF file",
                      kind.empty() ? "an empty file" : "one that begins with " + quoted(kind));
    }
    count_ = whole(252, 4, 0);
    const std::string_view reserved = text(192, 44).substr(0, 5);
    header_.is_discontinuous = reserved == "EDF+D" || reserved == "BDF+D";
    const auto size = static_cast<std::int64_t>(text_.size());
    if (size < end()) {
      throw FileError(
          path_, size,
          std::to_string(count_) + " signal headers, which end at byte " + std::to_string(end()),
          "the end of the file at byte " + std::to_string(size));
    }
    header_.patient = text(8, 80);
    header_.recording = text(88, 80);
    header_.start = raw(168, 16).text;
  }

  std::int64_t end() const { return kFixed * (1 + count_); }

  void read_members() {
    header_.members.reserve(static_cast<std::size_t>(count_));
    for (std::int64_t i = 0; i < count_; ++i) {
      EdfMember member;
      member.label = text(kLabel, i);
      member.unit = text(kUnit, i);
      member.is_annotation =
          member.label == (header_.is_bdf ? "BDF Annotations" : "EDF Annotations");
      member.samples_per_record = whole_of(kSamples, i, 1);
      if (!member.is_annotation) {
        number(kPhysicalMin, i);
        number(kPhysicalMax, i);
        member.digital_min = whole_of(kDigitalMin, i);
        member.digital_max = whole_of(kDigitalMax, i);
      }
      header_.members.push_back(member);
    }
  }

  void read_clock() {
    header_.record_duration_s = number(244, 8);
    const auto is_annotation = [](const EdfMember& member) { return member.is_annotation; };
    const bool timeless =
        std::all_of(header_.members.begin(), header_.members.end(), is_annotation);
    if (header_.record_duration_s <= 0 && !timeless) {
      std::string found = quoted(raw(244, 8).text);
      if (header_.is_discontinuous) {
        found +=
            " in a discontinuous file; convert it to EDF+C, with the gaps filled or as one file "
            "per part";
      }
      throw FileError(path_, 244, "the seconds that a data record lasts, more than 0", found);
    }
    header_.stated_records = whole(236, 8, -1);
  }

  void count_records() {
    std::int64_t samples = 0;
    for (const EdfMember& member : header_.members) samples += member.samples_per_record;
    const std::int64_t bytes = samples * (header_.is_bdf ? 3 : 2), stated = header_.stated_records;
    header_.data_offset = end();
    const std::int64_t expected =
        add_product(header_.data_offset, std::max(stated, std::int64_t{0}), bytes);
    const bool fits = file_size_ >= expected && bytes > 0 && (file_size_ - expected) % bytes == 0;
    check_stated_end(fits);
    if (file_size_ < expected) {
      throw FileError(path_, file_size_,
                      std::to_string(expected) + " bytes (" + std::to_string(stated) +
                          " data records of " + std::to_string(bytes) + " bytes from byte " +
                          std::to_string(header_.data_offset) + "), as the header promises",
                      std::to_string(file_size_) + " bytes: truncated. Fetch the file again");
    }
    const std::int64_t present = file_size_ - header_.data_offset;
    header_.num_records = bytes > 0 ? present / bytes : 0;
    header_.rest_bytes = present - header_.num_records * bytes;
    check_duration();
  }

  // Another number than the standard's would shift every sample. `fits`: whether the size of the
  // file is that of the standard's header and whole data records.
  void check_stated_end(bool fits) const {
    if (whole(184, 8) == end()) return;
    const std::string right = std::to_string(end());
    throw FileError(path_, 184,
                    right + ", the bytes of the header: 256 * (1 + the number of signals, " +
                        std::to_string(count_) + ")",
                    quoted(raw(184, 8).text) +
                        (fits ? ". The size of the file fits " + right +
                                    ", so only this field is damaged: write " + right +
                                    " into it, in a copy of the file"
                              : ": the header is damaged. Fetch or export the file again"));
  }

  void check_duration() const {
    const std::int64_t records = header_.num_records;
    const double seconds = header_.record_duration_s * static_cast<double>(records);
    if (seconds >= 0 && seconds <= kMaxDurationS) return;
    const double most = kMaxDurationS / static_cast<double>(std::max(records, std::int64_t{1}));
    fail(raw(244, 8), "0 to " + general(most) + " seconds for each of " + std::to_string(records) +
                          " data records, " + general(kMaxDurationS) + " in all");
  }

  // Gain and baseline of a signal from its ranges, and a look at its rate.
  void calibrate(std::int64_t i) {
    EdfMember& member = header_.members[static_cast<std::size_t>(i)];
    if (member.is_annotation) return;
    const double low = number(kPhysicalMin, i), high = number(kPhysicalMax, i);
    const auto least = static_cast<double>(member.digital_min);
    const auto most = static_cast<double>(member.digital_max);
    member.gain = high != low ? (most - least) / (high - low) : 0;
    member.baseline = most - high * member.gain;
    const double magnitude = std::abs(member.gain);
    if (!(magnitude >= kMinGain && magnitude <= kMaxGain &&
          std::abs(member.baseline) <= kMaxBaseline)) {
      member.gain = 1;
      member.baseline = 0;
      member.unusable = "physical range " + range(i, kPhysicalMin, kPhysicalMax) +
                        ", digital range " + range(i, kDigitalMin, kDigitalMax);
    }
    check_rate(i);
  }

  void check_rate(std::int64_t i) const {
    const EdfMember& member = header_.members[static_cast<std::size_t>(i)];
    const std::int64_t samples = member.samples_per_record;
    const double rate_hz = static_cast<double>(samples) / header_.record_duration_s;
    if (rate_hz >= kMinRateHz && rate_hz <= kMaxRateHz) return;
    throw FileError(path_, at(kSamples, i),
                    general(kMinRateHz) + " to " + general(kMaxRateHz) +
                        " samples per second of signal " + std::to_string(i) + " (" +
                        printable(member.label) + ")",
                    std::to_string(samples) + " in " + general(header_.record_duration_s) + " s");
  }

  std::string range(std::int64_t i, const Column& low, const Column& high) const {
    return std::string(text(low, i)) + " to " + std::string(text(high, i));
  }

  std::string_view text_;
  std::int64_t file_size_;
  const std::string& path_;
  std::int64_t count_ = 0;  // of members
  EdfHeader header_;
};

}  // namespace

EdfHeader parse_edf_header(std::string_view text, std::int64_t file_size, const std::string& path) {
  return Parser(text, file_size, path).parse();
}

}  // namespace physiofast
