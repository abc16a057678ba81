#include "signalfile.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <utility>

#include "aligned.hpp"
#include "kernels.hpp"

namespace physiofast {
namespace {

// Samples between unpacking and conversion; they stay in the first-level cache.
constexpr std::int64_t kChunk = SignalFile::kBlockBytes / 32;
// Bytes that cost as much to read as one more call of the system does.
constexpr std::int64_t kGapBytes = SignalFile::kBlockBytes / 16;
// Loads and unpacking of whole groups may go this far past the bytes read.
constexpr std::int64_t kPadding = 16;
// Samples that are worth a call of a kernel.
constexpr std::int64_t kLongStretch = 64;
// Samples of a frame that is small enough to read whole, whatever is wanted of it.
constexpr std::int64_t kSmallFrame = SignalFile::kBlockBytes / 16;

// Of `kept`: together they grow to what SignalFile::kReadMemory says.
struct Bytes;
struct Unpacked;
struct Summed;
struct FrameRows;
struct RowOf;

template <class T>
T at(const std::vector<T>& values, std::int64_t i) {
  return values[static_cast<std::size_t>(i)];
}

template <class T>
Span<const T> view(const std::vector<T>& values) {
  return {values.data(), static_cast<std::int64_t>(values.size())};
}

template <class T>
std::vector<Run<T>> planes(Span<const std::int64_t> channels, std::int64_t first,
                           std::int64_t count, T* out, std::int64_t stride) {
  std::vector<Run<T>> runs;
  runs.reserve(static_cast<std::size_t>(channels.size));
  for (std::int64_t i = 0; i < channels.size; ++i) {
    runs.push_back({channels[i], first, count, out + i * stride, nullptr});
  }
  return runs;
}

// Unsigned sums wrap, and may be added in any order.
template <class T>
std::uint16_t sum_of(Span<const T> samples) {
  using Sum = std::make_unsigned_t<T>;
  Sum sum = 0;
  for (std::int64_t t = 0; t < samples.size; ++t) {
    sum = static_cast<Sum>(sum + static_cast<Sum>(samples[t]));
  }
  return static_cast<std::uint16_t>(sum);
}

// In stretches that stay in the first-level cache for the second look, at invalid samples.
void to_physical_f32(const std::int16_t* in, std::int64_t count, const Calibration& calibration,
                     float* out) {
  using Limits = std::numeric_limits<std::int16_t>;
  const bool possible =
      calibration.invalid >= Limits::min() && calibration.invalid <= Limits::max();
  const auto invalid = static_cast<std::int16_t>(possible ? calibration.invalid : 0);
  for (std::int64_t t = 0; t < count; t += kChunk) {
    kernels().physical_f32(in + t, std::min(kChunk, count - t), calibration.baseline,
                           1.0 / calibration.gain, possible, invalid, out + t);
  }
}

template <class Value, class T>
void to_values(const Value* in, std::int64_t count, const Calibration* calibration, T* out) {
  if constexpr (std::is_same_v<Value, std::int16_t> && std::is_same_v<T, float>) {
    if (calibration == nullptr) return kernels().widen_f32(in, count, out);
    return to_physical_f32(in, count, *calibration, out);
  }
  if constexpr (std::is_floating_point_v<T>) {
    if (calibration != nullptr) return to_physical(in, count, *calibration, out);
  }
  to_stored(in, count, out);
}

template <class T>
void add_checksum(Span<const T> samples, std::uint16_t* checksum) {
  if (checksum == nullptr) return;
  *checksum = static_cast<std::uint16_t>(*checksum + sum_of(samples));
}

}  // namespace

std::int64_t SignalFile::position_of(std::int64_t channel, std::int64_t sample) const {
  const std::int64_t per_frame = at(layout_.samples_per_frame, channel);
  return sample / per_frame * width_ + at(start_, channel) + sample % per_frame;
}

std::int64_t SignalFile::samples_before(std::int64_t channel, std::int64_t position) const {
  const std::int64_t per_frame = at(layout_.samples_per_frame, channel);
  const std::int64_t inside = position % width_ - at(start_, channel);
  return position / width_ * per_frame + std::clamp(inside, std::int64_t{0}, per_frame);
}

// Whether pieces are whole frames of interleaved int16 samples.
bool SignalFile::picks_frames() const {
  const bool sixteen = layout_.format == Format::k16 || grouping(layout_.format).samples > 1;
  return interleaved_ && width_ > 1 && width_ < kSmallFrame && sixteen;
}

// Whole frames where a frame is small.
std::int64_t SignalFile::block_samples() const {
  const Grouping group = grouping(layout_.format);
  const std::int64_t samples = kBlockBytes / group.bytes * group.samples;
  return width_ > samples ? samples : samples / width_ * width_;
}

SignalFile::Piece SignalFile::load(Stretch stretch) const {
  const Grouping group = grouping(layout_.format);
  const std::int64_t first_group = stretch.first / group.samples;
  const std::int64_t base = first_group * group.samples;
  const std::int64_t size = num_bytes(layout_.format, stretch.end) - first_group * group.bytes;
  std::uint8_t* bytes = kept<Bytes, std::uint8_t>(kBlockBytes + 2 * kPadding);
  file_.read(layout_.byte_offset + first_group * group.bytes, {bytes, size});
  if (group.samples == 1) return {stretch, bytes, base};
  std::fill_n(bytes + size, kPadding, std::uint8_t{0});
  const std::int64_t groups = (stretch.end - base + group.samples - 1) / group.samples;
  std::int16_t* samples = kept<Unpacked, std::int16_t>(kBlockBytes / 4 * 3 + kPadding);
  unpack_groups(layout_.format, bytes, groups, samples);
  return {stretch, reinterpret_cast<const std::uint8_t*>(samples), base};
}

// `sums` are those before the stretch, and become those after it. They wrap as int32 does.
SignalFile::Piece SignalFile::load_differences(Stretch stretch,
                                               std::vector<std::uint32_t>& sums) const {
  const std::int64_t size = stretch.end - stretch.first;
  std::uint8_t* bytes = kept<Bytes, std::uint8_t>(kBlockBytes + 2 * kPadding);
  std::int32_t* samples = kept<Summed, std::int32_t>(kBlockBytes);
  file_.read(layout_.byte_offset + stretch.first, {bytes, size});
  for (std::int64_t channel = 0; channel < num_channels(); ++channel) {
    std::uint32_t sum = at(sums, channel);
    const std::int64_t first = samples_before(channel, stretch.first);
    const std::int64_t end = samples_before(channel, stretch.end);
    for_each_stretch(at(layout_.samples_per_frame, channel), width_, at(start_, channel), first,
                     end - first, [&](std::int64_t position, std::int64_t count) {
                       const std::int64_t begin = position - stretch.first;
                       for (std::int64_t t = begin; t < begin + count; ++t) {
                         const auto difference = static_cast<std::int8_t>(bytes[t]);
                         sum += static_cast<std::uint32_t>(static_cast<std::int32_t>(difference));
                         samples[t] = static_cast<std::int32_t>(sum);
                       }
                     });
    sums[static_cast<std::size_t>(channel)] = sum;
  }
  return {stretch, reinterpret_cast<const std::uint8_t*>(samples), stretch.first};
}

std::int64_t SignalFile::resume(std::int64_t position, std::vector<std::uint32_t>& sums) const {
  // Does not wait for ever: in the child of a fork, the thread that held the lock is not there to
  // release it.
  std::unique_lock<std::mutex> lock(checkpoints_lock_, std::try_to_lock);
  for (int turn = 0; !lock && turn < 100; ++turn) {
    std::this_thread::yield();
    lock.try_lock();
  }
  if (!lock) {
    sums.assign(layout_.initial_values.begin(), layout_.initial_values.end());
    return 0;
  }
  const std::int64_t wanted = position / width_ / checkpoint_frames_;
  const auto known = static_cast<std::int64_t>(checkpoints_.size()) - 1;
  const std::int64_t nearest = std::min(wanted, known);
  sums = checkpoints_[static_cast<std::size_t>(nearest)];
  return nearest * checkpoint_frames_ * width_;
}

void SignalFile::remember(std::int64_t position, const std::vector<std::uint32_t>& sums) const {
  const std::int64_t step = checkpoint_frames_ * width_;
  const std::unique_lock<std::mutex> lock(checkpoints_lock_, std::try_to_lock);
  if (!lock) return;
  const auto next = static_cast<std::int64_t>(checkpoints_.size());
  if (position % step == 0 && position / step == next) checkpoints_.push_back(sums);
}

template <class Sample>
void SignalFile::unpack(const Piece& piece, std::int64_t channel, std::int64_t first,
                        std::int64_t count, typename Sample::Value* out) const {
  const std::int64_t per_frame = at(layout_.samples_per_frame, channel);
  if (per_frame == 1) {
    const std::int64_t from = position_of(channel, first) - piece.base;
    copy_strided<Sample>(piece.data + from * Sample::kBytes, width_ * Sample::kBytes, count, out);
    return;
  }
  for_each_stretch(per_frame, width_, at(start_, channel), first, count,
                   [&](std::int64_t position, std::int64_t some) {
                     const std::int64_t from = position - piece.base;
                     copy_contiguous<Sample>(piece.data + from * Sample::kBytes, some, out);
                     out += some;
                   });
}

void SignalFile::check_fit(Span<const std::int32_t> values, std::int64_t channel,
                           std::int64_t first) const {
  using Limits = std::numeric_limits<std::int16_t>;
  for (std::int64_t t = 0; t < values.size; ++t) {
    if (values[t] < Limits::min() || values[t] > Limits::max()) {
      const std::int64_t position = position_of(channel, first + t);
      throw FileError(path(), layout_.byte_offset + num_bytes(layout_.format, position),
                      "a sample that int16 holds (read int32 instead)", std::to_string(values[t]));
    }
  }
}

// Samples [first, first + count) of a channel to where they go; `values` may lie there already.
template <class Value, class T>
void SignalFile::put(const Value* values, std::int64_t count, const Target<T>& target,
                     std::int64_t first) const {
  T* out = target.run.out + (first - target.run.first);
  add_checksum<Value>({values, count}, target.run.checksum);
  if constexpr (std::is_same_v<T, std::int16_t> && !std::is_same_v<Value, T>) {
    check_fit({values, count}, target.run.channel, first);
  }
  if constexpr (std::is_same_v<Value, T>) {
    if (values == out) return;
  }
  if (!target.run.past_caches) return to_values(values, count, target.calibration, out);
  T block[kChunk];
  for (std::int64_t t = 0; t < count; t += kChunk) {
    const std::int64_t here = std::min(kChunk, count - t);
    to_values(values + t, here, target.calibration, block);
    kernels().stream_bytes(out + t, block, here * static_cast<std::int64_t>(sizeof(T)));
  }
}

// Stretches of 16-bit samples become values where they lie: picking them out first would take a
// quarter of the whole time. The file's frames are long then, and hold whole stretches.
void SignalFile::convert_stretches(const Piece& piece, const Target<float>& target,
                                   std::int64_t first, std::int64_t end) const {
  const auto* samples = reinterpret_cast<const std::int16_t*>(piece.data);
  const std::int64_t channel = target.run.channel;
  float block[kChunk];
  for (; first < end; first += kChunk) {
    const std::int64_t count = std::min(kChunk, end - first);
    float* out = target.run.out + (first - target.run.first);
    float* values = target.run.past_caches ? block : out;
    for_each_stretch(at(layout_.samples_per_frame, channel), width_, at(start_, channel), first,
                     count, [&](std::int64_t position, std::int64_t some) {
                       const std::int16_t* from = samples + (position - piece.base);
                       add_checksum<std::int16_t>({from, some}, target.run.checksum);
                       to_values(from, some, target.calibration, values);
                       values += some;
                     });
    if (!target.run.past_caches) continue;
    kernels().stream_bytes(out, block, count * static_cast<std::int64_t>(sizeof(float)));
  }
}

template <class Sample, class T>
void SignalFile::convert(const Piece& piece, const Target<T>& target, std::int64_t first,
                         std::int64_t end) const {
  using Value = typename Sample::Value;
  if constexpr (std::is_same_v<Sample, Sample16> && std::is_same_v<T, float>) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(piece.data) % sizeof(std::int16_t) == 0;
    const bool long_stretches = at(layout_.samples_per_frame, target.run.channel) >= kLongStretch;
    if (aligned && long_stretches) return convert_stretches(piece, target, first, end);
  }
  if constexpr (std::is_same_v<Value, T>) {
    T* out = target.run.out + (first - target.run.first);
    unpack<Sample>(piece, target.run.channel, first, end - first, out);
    put(out, end - first, target, first);
  } else {
    Value chunk[kChunk];
    for (; first < end; first += kChunk) {
      const std::int64_t count = std::min(kChunk, end - first);
      unpack<Sample>(piece, target.run.channel, first, count, chunk);
      put(chunk, count, target, first);
    }
  }
}

// Interleaved 16-bit samples: all channels of a piece are picked apart together.
template <class T>
void SignalFile::emit_frames(const Piece& piece, Targets<T> targets) const {
  const std::int64_t begin = piece.stretch.first / width_;
  const std::int64_t end = piece.stretch.end / width_;
  std::int16_t* rows = kept<FrameRows, std::int16_t>(kBlockBytes);
  std::int16_t** row_of = kept<RowOf, std::int16_t*>(width_);
  std::fill_n(row_of, width_, nullptr);
  const std::int64_t frames = end - begin;
  for (std::int64_t i = 0; i < targets.size; ++i) {
    const Run<T>& run = targets[i].run;
    std::int16_t*& row = row_of[run.channel];
    if constexpr (std::is_same_v<T, std::int16_t>) {
      const bool whole = run.first <= begin && run.first + run.count >= end;
      if (row == nullptr && whole) row = run.out + (begin - run.first);
    }
    if (row == nullptr) row = rows + run.channel * frames;
  }
  const auto* samples =
      reinterpret_cast<const std::int16_t*>(piece.data) + (piece.stretch.first - piece.base);
  kernels().deinterleave_i16(samples, frames, width_, row_of);
  for (std::int64_t i = 0; i < targets.size; ++i) {
    const Run<T>& run = targets[i].run;
    const std::int64_t from = std::max(run.first, begin);
    const std::int64_t to = std::min(run.first + run.count, end);
    if (from < to) put(row_of[run.channel] + (from - begin), to - from, targets[i], from);
  }
}

template <class Sample, class T>
void SignalFile::emit_as(const Piece& piece, Targets<T> targets) const {
  std::optional<FileError>
      earliest;  // of what int16 does not hold, the one that comes first in the file
  for (std::int64_t i = 0; i < targets.size; ++i) {
    const Run<T>& run = targets[i].run;
    const std::int64_t first =
        std::max(run.first, samples_before(run.channel, piece.stretch.first));
    const std::int64_t end =
        std::min(run.first + run.count, samples_before(run.channel, piece.stretch.end));
    if (first >= end) continue;
    try {
      convert<Sample>(piece, targets[i], first, end);
    } catch (const FileError& error) {
      if (!earliest || error.byte_offset < earliest->byte_offset) earliest.emplace(error);
    }
  }
  if (earliest) throw *earliest;
}

template <class T>
void SignalFile::emit(const Piece& piece, Targets<T> targets) const {
  if (picks_frames()) return emit_frames(piece, targets);
  switch (layout_.format) {
    case Format::k24:
      return emit_as<Sample24>(piece, targets);
    case Format::k61:
      return emit_as<Sample61>(piece, targets);
    case Format::k80:
      return emit_as<Sample80>(piece, targets);
    case Format::k160:
      return emit_as<Sample160>(piece, targets);
    case Format::k8:
    case Format::k32:
      return emit_as<Sample32>(piece, targets);
    default:  // 16, and what load() has unpacked
      return emit_as<Sample16>(piece, targets);
  }
}

template <class T>
void SignalFile::read_dense(Targets<T> targets, Stretch stretch) const {
  const std::int64_t block = block_samples();
  for (std::int64_t first = stretch.first; first < stretch.end; first += block) {
    emit(load({first, std::min(first + block, stretch.end)}), targets);
  }
}

template <class T>
void SignalFile::read_sections(Targets<T> targets, Stretch stretch,
                               const std::vector<Section>& sections) const {
  for (std::int64_t frame = stretch.first / width_ * width_; frame < stretch.end; frame += width_) {
    for (const Section& section : sections) {
      read_dense<T>({targets.data + section.first_run, section.num_runs},
                    {std::max(frame + section.begin, stretch.first),
                     std::min(frame + section.end, stretch.end)});
    }
  }
}

template <class T>
void SignalFile::read_differences(Targets<T> targets, Stretch stretch, const Poll& poll) const {
  std::vector<std::uint32_t> sums;
  const std::int64_t step = checkpoint_frames_ * width_;
  std::int64_t first = resume(stretch.first, sums);
  while (first < stretch.end) {
    if (poll) poll();
    const std::int64_t checkpoint = (first / step + 1) * step;
    const std::int64_t end = std::min({first + block_samples(), checkpoint, stretch.end});
    emit(load_differences({first, end}, sums), targets);
    remember(end, sums);
    first = end;
  }
}

// Sorts the targets by their place in a frame. One section for the whole frame when skipping what
// lies between would not pay.
template <class T>
std::vector<SignalFile::Section> SignalFile::sections(std::vector<Target<T>>& targets) const {
  std::sort(targets.begin(), targets.end(), [this](const Target<T>& a, const Target<T>& b) {
    return at(start_, a.run.channel) < at(start_, b.run.channel);
  });
  const Grouping group = grouping(layout_.format);
  const std::int64_t gap = kGapBytes / group.bytes * group.samples;
  std::vector<Section> found;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const std::int64_t begin = at(start_, targets[i].run.channel);
    const std::int64_t end = begin + at(layout_.samples_per_frame, targets[i].run.channel);
    if (found.empty() || begin - found.back().end >= gap) {
      found.push_back({begin, end, static_cast<std::int64_t>(i), 0});
    }
    found.back().end = std::max(found.back().end, end);
    ++found.back().num_runs;
  }
  const bool gapless = found.size() == 1 && width_ - (found[0].end - found[0].begin) < gap;
  if (gapless) found.clear();
  return found;
}

template <class T>
std::vector<SignalFile::Target<T>> SignalFile::targets(Span<const Run<T>> runs,
                                                       Span<const Calibration> calibrations) const {
  std::vector<Target<T>> wanted;
  wanted.reserve(static_cast<std::size_t>(runs.size));
  for (std::int64_t i = 0; i < runs.size; ++i) {
    check_run(i, runs[i].channel, runs[i].first, runs[i].count);
    const Calibration* calibration =
        calibrations.size == 0 ? nullptr : &calibrations[runs[i].channel];
    if (runs[i].count > 0) wanted.push_back({runs[i], calibration});
  }
  return wanted;
}

template <class T>
SignalFile::Stretch SignalFile::span_of(Targets<T> targets) const {
  Stretch stretch{std::numeric_limits<std::int64_t>::max(), 0};
  for (std::int64_t i = 0; i < targets.size; ++i) {
    const Run<T>& run = targets[i].run;
    stretch.first = std::min(stretch.first, position_of(run.channel, run.first));
    stretch.end = std::max(stretch.end, position_of(run.channel, run.first + run.count - 1) + 1);
  }
  if (!interleaved_) return stretch;
  return {stretch.first / width_ * width_, (stretch.end + width_ - 1) / width_ * width_};
}

template <class T>
void SignalFile::read_runs(Span<const Run<T>> runs, Span<const Calibration> calibrations,
                           const Poll& poll) const {
  if (std::is_same_v<T, std::int16_t> &&
      (layout_.format == Format::k24 || layout_.format == Format::k32)) {
    throw std::invalid_argument("int16 does not hold format " +
                                std::to_string(static_cast<int>(layout_.format)) +
                                "; read int32, float32 or float64");
  }
  if (calibrations.size != 0 && !std::is_floating_point_v<T>) {
    throw std::invalid_argument("physical values need float32 or float64");
  }
  if (calibrations.size != 0 && calibrations.size != num_channels()) {
    throw std::invalid_argument("calibrations: expected one for each of " +
                                std::to_string(num_channels()) + " channels, found " +
                                std::to_string(calibrations.size));
  }
  std::vector<Target<T>> wanted = targets(runs, calibrations);
  if (wanted.empty()) return;
  const Stretch stretch = span_of<T>(view(wanted));
  const auto parts = width_ < kSmallFrame ? std::vector<Section>{} : sections(wanted);
  if (layout_.format == Format::k8) {
    read_differences<T>(view(wanted), stretch, poll);
  } else if (parts.empty()) {
    read_dense<T>(view(wanted), stretch);
  } else {
    read_sections<T>(view(wanted), stretch, parts);
  }
  stream_end();
}

template void SignalFile::read_runs(Span<const Run<std::int16_t>>, Span<const Calibration>,
                                    const Poll&) const;
template void SignalFile::read_runs(Span<const Run<std::int32_t>>, Span<const Calibration>,
                                    const Poll&) const;
template void SignalFile::read_runs(Span<const Run<float>>, Span<const Calibration>,
                                    const Poll&) const;
template void SignalFile::read_runs(Span<const Run<double>>, Span<const Calibration>,
                                    const Poll&) const;

void SignalFile::read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                      std::int16_t* out, std::int64_t stride) const {
  read_runs<std::int16_t>(view(planes(channels, first, count, out, stride)));
}

void SignalFile::read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                      std::int32_t* out, std::int64_t stride) const {
  read_runs<std::int32_t>(view(planes(channels, first, count, out, stride)));
}

void SignalFile::read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                      float* out, std::int64_t stride) const {
  read_runs<float>(view(planes(channels, first, count, out, stride)));
}

void SignalFile::read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                      double* out, std::int64_t stride) const {
  read_runs<double>(view(planes(channels, first, count, out, stride)));
}

void SignalFile::read_frames(std::int64_t first, std::int64_t count, const TakeFrames& take) const {
  const std::int64_t step = block_samples() / width_;
  for (std::int64_t end = first + count; first < end; first += step) {
    const std::int64_t here = std::min(step, end - first);
    const Piece piece = load({first * width_, (first + here) * width_});
    take(reinterpret_cast<const std::int16_t*>(piece.data) + (piece.stretch.first - piece.base),
         here);
  }
}

std::uint16_t checksum(Span<const std::int16_t> samples) { return sum_of(samples); }
std::uint16_t checksum(Span<const std::int32_t> samples) { return sum_of(samples); }

}  // namespace physiofast
