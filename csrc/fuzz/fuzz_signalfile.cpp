// Signal files under headers that lie: the input is a layout, reads and the bytes of the file.
// Every read equals a decoder that takes one sample at a time, or throws; the file may shrink in
// between.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../signalfile.hpp"

namespace {

using physiofast::Calibration;
using physiofast::Format;
using physiofast::Run;
using physiofast::SignalFile;

constexpr std::int64_t kMaxOutput = 1 << 16;

void require(bool truth, const char* what) {
  if (truth) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

struct Wanted {
  std::int64_t channel;
  std::int64_t first;
  std::int64_t count;
};

// Takes numbers from the front of the input; zeros when it is used up.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }

  // Mostly a small number, now and then one of any size or sign.
  std::int64_t number() {
    const std::uint8_t kind = byte();
    if (kind < 240) return kind % 40;
    if (kind < 248) return kind - 240 + 256 * std::int64_t{byte()};
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<std::int64_t>(value);
  }

  std::vector<std::uint8_t> rest() const { return {data_, data_ + left_}; }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

// A file in memory that every input fills anew.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("fuzz", 0)) {
    require(fd_ >= 0, "memfd_create");
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }

  const std::string& path() const { return path_; }

  void fill(const std::vector<std::uint8_t>& bytes) const {
    truncate(0);
    const auto size = static_cast<ssize_t>(bytes.size());
    require(::pwrite(fd_, bytes.data(), bytes.size(), 0) == size, "pwrite");
  }

  void truncate(std::int64_t size) const { require(::ftruncate(fd_, size) == 0, "ftruncate"); }

 private:
  int fd_;
  std::string path_;
};

// Bits [first, first + count) of the file from `start`, the lowest first.
std::int64_t bits(const std::vector<std::uint8_t>& file, std::int64_t start, std::int64_t first,
                  int count) {
  std::int64_t value = 0;
  for (std::int64_t byte = (first + count - 1) / 8; byte >= first / 8; --byte) {
    value = value << 8 | file.at(static_cast<std::size_t>(start + byte));
  }
  return value >> (first % 8) & ((std::int64_t{1} << count) - 1);
}

std::int64_t as_signed(std::int64_t value, int count) {
  return value >= (std::int64_t{1} << (count - 1)) ? value - (std::int64_t{1} << count) : value;
}

// Sample `i` of the file as the format's description has it; for format 8, the difference.
std::int64_t slow_sample(const std::vector<std::uint8_t>& file,
                         const physiofast::SignalLayout& layout, std::int64_t i) {
  const std::int64_t from = layout.byte_offset;
  const auto take = [&](std::int64_t first, int count) { return bits(file, from, first, count); };
  switch (layout.format) {
    case Format::k8:
      return as_signed(take(8 * i, 8), 8);
    case Format::k16:
      return as_signed(take(16 * i, 16), 16);
    case Format::k24:
      return as_signed(take(24 * i, 24), 24);
    case Format::k32:
      return as_signed(take(32 * i, 32), 32);
    case Format::k61:
      return as_signed(take(16 * i, 8) << 8 | take(16 * i + 8, 8), 16);
    case Format::k80:
      return take(8 * i, 8) - 128;
    case Format::k160:
      return take(16 * i, 16) - 32768;
    case Format::k212: {
      const std::int64_t at = i / 2 * 24;
      if (i % 2 == 0) return as_signed(take(at, 12), 12);
      return as_signed(take(at + 16, 8) | take(at + 12, 4) << 8, 12);
    }
    case Format::k310: {
      const std::int64_t at = i / 3 * 32;
      if (i % 3 < 2) return as_signed(take(at + 16 * (i % 3) + 1, 10), 10);
      return as_signed(take(at + 11, 5) | take(at + 27, 5) << 5, 10);
    }
    case Format::k311:
      return as_signed(take(i / 3 * 32 + i % 3 * 10, 10), 10);
  }
  return 0;
}

// Samples [first, first + count) of a channel.
std::vector<std::int32_t> slow_channel(const std::vector<std::uint8_t>& file,
                                       const physiofast::SignalLayout& layout,
                                       const Wanted& wanted) {
  const auto channel = static_cast<std::size_t>(wanted.channel);
  const std::vector<std::int64_t>& counts = layout.samples_per_frame;
  const std::int64_t width = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  const std::int64_t start = std::accumulate(
      counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(channel), std::int64_t{0});
  const bool differences = layout.format == Format::k8;
  std::uint32_t sum = 0;
  if (differences) sum = static_cast<std::uint32_t>(layout.initial_values[channel]);
  std::vector<std::int32_t> out;
  for (std::int64_t t = differences ? 0 : wanted.first; t < wanted.first + wanted.count; ++t) {
    const std::int64_t value =
        slow_sample(file, layout, t / counts[channel] * width + start + t % counts[channel]);
    sum = (differences ? sum : 0) + static_cast<std::uint32_t>(value);
    if (t >= wanted.first) out.push_back(static_cast<std::int32_t>(sum));
  }
  return out;
}

physiofast::SignalLayout layout_from(Input& input) {
  constexpr int kFormats[] = {8, 16, 24, 32, 61, 80, 160, 212, 310, 311};
  physiofast::SignalLayout layout;
  layout.format = physiofast::format_from(kFormats[input.byte() % 10]);
  layout.byte_offset = input.number();
  layout.num_frames = input.number();
  const std::uint8_t shape = input.byte();
  const int channels = shape % 20;
  const bool interleaved = shape >= 160;  // one sample of each channel per frame has its own path
  for (int c = 0; c < channels; ++c) {
    layout.samples_per_frame.push_back(interleaved ? 1 : input.number());
  }
  const int initial = input.byte() % 4 == 0 ? input.byte() % 9 : 0;
  for (int c = 0; c < initial; ++c) {
    layout.initial_values.push_back(static_cast<std::int32_t>(input.number()));
  }
  return layout;
}

// A few runs, or one range of many channels, or ranges that begin together.
std::vector<Wanted> wanted_from(Input& input, std::size_t channels) {
  const std::uint8_t kind = input.byte();
  std::vector<Wanted> wanted;
  if (kind >= 128) {
    const std::int64_t first = input.number(), count = input.number() % (1 << 20);
    for (std::size_t c = 0; c < channels; ++c) {
      const std::int64_t less = kind % 2 == 1 ? static_cast<std::int64_t>(c % 3) : 0;
      if ((kind >> (c % 7) & 2) == 0) {
        wanted.push_back({static_cast<std::int64_t>(c), first, count - less});
      }
    }
    return wanted;
  }
  wanted.resize(kind % 6);
  for (Wanted& run : wanted) run = {input.number() % 64, input.number(), input.number()};
  return wanted;
}

template <class T>
T expected(std::int32_t stored, const std::vector<Calibration>& calibrations,
           std::int64_t channel) {
  if (calibrations.empty()) return static_cast<T>(stored);
  const Calibration& c = calibrations[static_cast<std::size_t>(channel)];
  if (stored == c.invalid) return std::numeric_limits<T>::quiet_NaN();
  const double distance = stored - c.baseline;
  return static_cast<T>(sizeof(T) == 8 ? distance / c.gain : distance * (1.0 / c.gain));
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class T>
void read_and_compare(const SignalFile& file, const std::vector<std::uint8_t>& bytes,
                      const std::vector<Wanted>& wanted,
                      const std::vector<Calibration>& calibrations) {
  std::vector<std::vector<T>> out;
  std::vector<std::uint16_t> sums(wanted.size(), 0);
  std::vector<Run<T>> runs;
  out.reserve(wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    // A caller has memory for what it asks; more than there is must be refused before any write.
    out.emplace_back(
        static_cast<std::size_t>(std::clamp(wanted[i].count, std::int64_t{0}, kMaxOutput)));
    if (wanted[i].count > kMaxOutput && wanted[i].channel < file.num_channels() &&
        wanted[i].channel >= 0 && wanted[i].count <= file.num_samples(wanted[i].channel)) {
      return;
    }
    runs.push_back({wanted[i].channel, wanted[i].first, wanted[i].count, out[i].data(), &sums[i]});
  }
  file.read_runs<T>({runs.data(), static_cast<std::int64_t>(runs.size())},
                    {calibrations.data(), static_cast<std::int64_t>(calibrations.size())});
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const std::int64_t total = file.num_samples(wanted[i].channel);
    require(wanted[i].first >= 0 && wanted[i].count >= 0 && wanted[i].first <= total &&
                wanted[i].count <= total - wanted[i].first,
            "a range outside the file was read");
    // The slow decoder would be the fuzzer's brake.
    const bool differences = file.layout().format == Format::k8;
    if (wanted[i].count + (differences ? wanted[i].first : 0) > 128) continue;
    const auto plain = slow_channel(bytes, file.layout(), wanted[i]);
    std::uint32_t sum = 0;
    for (std::size_t t = 0; t < plain.size(); ++t) {
      sum += static_cast<std::uint32_t>(plain[t]);
      const T value = expected<T>(plain[t], calibrations, wanted[i].channel);
      require(same(static_cast<double>(out[i][t]), static_cast<double>(value)),
              "a sample differs from the slow decoder's");
    }
    require(sums[i] == (sum & 0xffff), "a checksum differs");
  }
}

void read(const SignalFile& file, const std::vector<std::uint8_t>& bytes,
          const std::vector<Wanted>& wanted, const std::vector<Calibration>& calibrations,
          int type) {
  if (type == 0) read_and_compare<std::int16_t>(file, bytes, wanted, calibrations);
  if (type == 1) read_and_compare<std::int32_t>(file, bytes, wanted, calibrations);
  if (type == 2) read_and_compare<float>(file, bytes, wanted, calibrations);
  if (type == 3) read_and_compare<double>(file, bytes, wanted, calibrations);
}

// Runs f; errors that a bad file or a bad request may give are fine, everything else is found by
// the fuzzer.
template <class F>
void allow_errors(F f) {
  try {
    f();
  } catch (const physiofast::FileError& error) {
    require(error.byte_offset >= 0 && !error.expected.empty() && !error.found.empty(), "an error");
  } catch (const physiofast::BoundsError&) {
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile memory;
  Input input(data, size);
  const physiofast::SignalLayout layout = layout_from(input);
  const std::size_t channels = layout.samples_per_frame.size();
  const std::vector<Wanted> wanted = wanted_from(input, channels);
  const std::vector<Wanted> later = wanted_from(input, channels);
  const int type = input.byte() % 4;
  const std::uint8_t extras = input.byte();
  std::vector<Calibration> calibrations;
  if (extras & 1) {
    for (std::size_t c = 0; c < channels; ++c) {
      calibrations.push_back({1.0 + input.byte(), 7.0 * input.byte() - 900, input.number()});
    }
  }
  const std::int64_t shrunk = extras & 2 ? input.number() : -1;
  // Repeated, so that short inputs reach long files.
  std::vector<std::uint8_t> bytes = input.rest();
  const std::size_t once = bytes.size(), times = extras & 4 ? 16 : 1;
  for (std::size_t i = 1; i < times; ++i) {
    bytes.insert(bytes.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(once));
  }
  memory.fill(bytes);
  allow_errors([&] {
    const SignalFile file(memory.path(), layout);
    allow_errors([&] { read(file, bytes, wanted, calibrations, type); });
    if (shrunk >= 0 && shrunk < static_cast<std::int64_t>(bytes.size())) memory.truncate(shrunk);
    read(file, bytes, later, calibrations, type);
  });
  return 0;
}
