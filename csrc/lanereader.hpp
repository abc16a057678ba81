// Rows of lanes from a source, for the recursive filter. Part of condition.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "condition.hpp"

namespace physiofast {

constexpr std::int64_t kGroup = kFloatLanes;  // channels that are worked on together

// The first bridge that ends behind a sample.
inline auto next_bridge(const Channel& channel, std::int64_t first) {
  const auto ended = [first](const Bridge& gap) { return gap.stop <= first; };
  return std::partition_point(channel.bridges.begin(), channel.bridges.end(), ended);
}

template <class T>
void draw_bridges(const Channel& channel, std::int64_t first, std::int64_t count, T* row) {
  for (auto next = next_bridge(channel, first);
       next != channel.bridges.end() && next->start < first + count; ++next) {
    const Bridge& gap = *next;
    const std::int64_t from = std::max(gap.start, first), to = std::min(gap.stop, first + count);
    const double slope = (gap.after - gap.before) / static_cast<double>(gap.stop - gap.start + 1);
    for (std::int64_t t = from; t < to; ++t) {
      row[t - first] = static_cast<T>(gap.before + slope * static_cast<double>(t - gap.start + 1));
    }
  }
}

// The stored numbers of some channels, as planes, with what is invalid bridged.
template <class T>
void load(const SampleSource& source, const Job& job, Span<const std::int64_t> numbers,
          std::int64_t first, std::int64_t count, T* out, std::int64_t stride) {
  std::int64_t channels[kGroup];
  for (std::int64_t i = 0; i < numbers.size; ++i) {
    channels[i] = job.channels[static_cast<std::size_t>(numbers[i])].source;
  }
  source.read({channels, numbers.size}, first, count, out, stride);
  for (std::int64_t i = 0; i < numbers.size; ++i) {
    const Channel& channel = job.channels[static_cast<std::size_t>(numbers[i])];
    draw_bridges(channel, first, count, out + i * stride);
  }
}

// Reads rows of the signal, scaled, with its odd extension at both ends. T is float where that
// holds the stored numbers, else double. A bridge needs double: rounded to float32, its line on an
// offset would pass a high-pass filter as noise.
template <class T>
class LaneReader {
 public:
  LaneReader(const SampleSource& source, const Job& job, const std::vector<std::int64_t>& lanes)
      : source_(source), job_(job), lanes_(lanes), in_frames_(are_in_frames()) {
    const std::int64_t last = job.num_samples - 1;
    std::fill_n(scale_, kGroup, 0.0);
    std::fill_n(shift_, kGroup, 0.0);
    for (std::size_t l = 0; l < lanes.size(); ++l) {
      const Channel& channel = job.channels[static_cast<std::size_t>(lanes[l])];
      scale_[l] = channel.scale;
      shift_[l] = channel.shift;
      Ends& ends = ends_[l];
      ends.edge = channel.cascade->edge;
      ends.first = sample(lanes[l], 0);
      ends.last = sample(lanes[l], last);
      ends.before = 2 * ends.first - sample(lanes[l], ends.edge);
      ends.after = 2 * ends.last - sample(lanes[l], last - ends.edge);
    }
  }

  void operator()(std::int64_t row, std::int64_t count, double* const* rows_of_bank) {
    const std::int64_t first = row - job_.blocks.edge, n = job_.num_samples;
    const std::int64_t before = std::clamp<std::int64_t>(-first, 0, count);
    const std::int64_t inside = std::clamp<std::int64_t>(n - (first + before), 0, count - before);
    const std::int64_t after = count - before - inside;
    if (inside == count && in_frames_ && !bridged(first, count)) {
      return widen_frames(first, count, rows_of_bank);
    }
    if (inside == count && !bridged(first, count)) {
      read(first, count, &planes_);
      return to_rows(planes_, count, rows_of_bank);
    }
    wide_.resize(static_cast<std::size_t>(kGroup * count));
    if (inside > 0) {
      load(source_, job_, all(), first + before, inside, wide_.data() + before, count);
    }
    const auto used = static_cast<std::int64_t>(lanes_.size());
    for (std::int64_t l = 0; l < used; ++l) {
      if (before > 0) extend_start(l, first, before, wide_.data() + l * count);
      if (after > 0) extend_end(l, first + count, after, wide_.data() + (l + 1) * count);
    }
    std::fill(wide_.begin() + used * count, wide_.end(), 0.0);
    to_rows(wide_, count, rows_of_bank);
  }

 private:
  struct Ends {
    std::int64_t edge;
    double first, last;    // of the signal
    double before, after;  // outermost values of its extension
  };

  // Whether lanes are neighbours in frames of int16, which need not be taken apart then.
  bool are_in_frames() const {
    if (source_.frame_width() == 0) return false;
    for (std::size_t l = 0; l < lanes_.size(); ++l) {
      if (channel(l).source != channel(0).source + static_cast<std::int64_t>(l)) return false;
    }
    return true;
  }

  bool bridged(std::int64_t first, std::int64_t count) const {
    for (std::size_t l = 0; l < lanes_.size(); ++l) {
      const auto next = next_bridge(channel(l), first);
      if (next != channel(l).bridges.end() && next->start < first + count) return true;
    }
    return false;
  }

  void widen_frames(std::int64_t first, std::int64_t count, double* const* rows_of_bank) const {
    const std::int64_t width = source_.frame_width();
    std::int64_t done = 0;
    source_.read_frames(first, count, [&](const std::int16_t* frames, std::int64_t here) {
      for (int at = 0; at < static_cast<int>(lanes_.size()); at += kDoubleLanes) {
        const int used = std::min(kDoubleLanes, static_cast<int>(lanes_.size()) - at);
        kernels().widen_frames(frames + channel(0).source + at, here, width, used, scale_ + at,
                               shift_ + at, rows_of_bank[at / kDoubleLanes] + done * kDoubleLanes);
      }
      done += here;
    });
  }

  const Channel& channel(std::size_t lane) const {
    return job_.channels[static_cast<std::size_t>(lanes_[lane])];
  }

  void to_rows(const Buffer<float>& planes, std::int64_t count, double* const* rows_of_bank) {
    rows_.resize(static_cast<std::size_t>(kGroup * count));
    kernels().transpose_f32(planes.data(), kGroup, count, count, rows_.data(), kGroup);
    for (int at = 0; at < static_cast<int>(lanes_.size()); at += kDoubleLanes) {
      kernels().widen_rows(rows_.data(), count, at, scale_ + at, shift_ + at,
                           rows_of_bank[at / kDoubleLanes]);
    }
  }

  void to_rows(const Buffer<double>& planes, std::int64_t count, double* const* rows_of_bank) {
    for (int at = 0; at < static_cast<int>(lanes_.size()); at += kDoubleLanes) {
      double* rows = rows_of_bank[at / kDoubleLanes];
      kernels().transpose_f64(planes.data() + at * count, kDoubleLanes, count, count, rows,
                              kDoubleLanes);
      for (std::int64_t i = 0; i < count * kDoubleLanes; ++i) {
        const std::int64_t lane = at + i % kDoubleLanes;
        rows[i] = rows[i] * scale_[lane] + shift_[lane];
      }
    }
  }

  Span<const std::int64_t> all() const {
    return {lanes_.data(), static_cast<std::int64_t>(lanes_.size())};
  }

  // Planes of all lanes, those that nobody uses zero.
  void read(std::int64_t first, std::int64_t count, Buffer<T>* planes) const {
    planes->resize(static_cast<std::size_t>(kGroup * count));
    load(source_, job_, all(), first, count, planes->data(), count);
    const auto used = static_cast<std::int64_t>(lanes_.size());
    std::fill(planes->begin() + used * count, planes->end(), T{0});
  }

  double sample(std::int64_t lane, std::int64_t at) const {
    double value = 0;
    load(source_, job_, {&lane, 1}, at, 1, &value, 1);
    return value;
  }

  // Samples [first, first + count), all before sample 0.
  void extend_start(std::int64_t l, std::int64_t first, std::int64_t count, double* row) const {
    const Ends& ends = ends_[l];
    const std::int64_t held = std::clamp<std::int64_t>(-ends.edge - first, 0, count);
    std::fill(row, row + held, ends.before);
    mirror(l, -(first + count - 1), count - held, ends.first, row + held);
  }

  // Samples [end - count, end), all behind the last one; `stop` points behind their row.
  void extend_end(std::int64_t l, std::int64_t end, std::int64_t count, double* stop) const {
    const Ends& ends = ends_[l];
    const std::int64_t last = job_.num_samples - 1;
    const std::int64_t held = std::clamp<std::int64_t>(end - 1 - (last + ends.edge), 0, count);
    std::fill(stop - held, stop, ends.after);
    mirror(l, 2 * last - (end - 1 - held), count - held, ends.last, stop - count);
  }

  // Twice the end value minus samples [first, first + count), last one first.
  void mirror(std::int64_t l, std::int64_t first, std::int64_t count, double end,
              double* row) const {
    if (count == 0) return;
    load(source_, job_, {lanes_.data() + l, 1}, first, count, row, count);
    std::reverse(row, row + count);
    for (std::int64_t t = 0; t < count; ++t) row[t] = 2 * end - row[t];
  }

  const SampleSource& source_;
  const Job& job_;
  const std::vector<std::int64_t>& lanes_;
  bool in_frames_;
  Ends ends_[kGroup];
  double scale_[kGroup], shift_[kGroup];
  Buffer<T> planes_;
  Buffer<double> wide_;
  Buffer<float> rows_;
};

}  // namespace physiofast
