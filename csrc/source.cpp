#include "source.hpp"

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "kernels.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 1024;  // frames that are picked apart at once

void widen(const std::int16_t* in, std::int64_t count, std::int16_t* out) {
  std::copy(in, in + count, out);
}
void widen(const std::int16_t* in, std::int64_t count, std::int32_t* out) {
  std::copy(in, in + count, out);
}
void widen(const std::int16_t* in, std::int64_t count, float* out) {
  kernels().widen_f32(in, count, out);
}
void widen(const std::int16_t* in, std::int64_t count, double* out) {
  kernels().widen_f64(in, count, out);
}

// Planes of one stretch: a row for each channel that is wanted, null for the others.
struct Rows {
  std::vector<std::int16_t> samples;
  std::vector<std::int16_t*> of_channel;

  Rows(std::int64_t width, Span<const std::int64_t> channels)
      : samples(static_cast<std::size_t>(channels.size * kStretch)),
        of_channel(static_cast<std::size_t>(width), nullptr) {
    for (std::int64_t i = 0; i < channels.size; ++i) {
      of_channel[static_cast<std::size_t>(channels[i])] = samples.data() + i * kStretch;
    }
  }
};

}  // namespace

void SampleSource::read_frames(std::int64_t, std::int64_t, const TakeFrames&) const {
  throw std::logic_error("this source has no frames");
}

void check_read(const SampleSource& source, Span<const std::int64_t> channels, std::int64_t first,
                std::int64_t count) {
  for (std::int64_t i = 0; i < channels.size; ++i) {
    if (channels[i] < 0 || channels[i] >= source.num_channels()) {
      throw BoundsError("channels", i, "0 to " + std::to_string(source.num_channels() - 1),
                        channels[i]);
    }
    const std::int64_t size = source.num_samples(channels[i]);
    if (first < 0 || count < 0 || first > size || count > size - first) {
      throw BoundsError("samples of channel", channels[i],
                        "a stretch within 0 to " + std::to_string(size) + " for " +
                            std::to_string(count) + " samples",
                        first);
    }
  }
}

template <class T>
void pick_channels(const std::int16_t* frames, std::int64_t width, std::int64_t count,
                   Span<const std::int64_t> channels, T* out, std::int64_t stride) {
  Rows rows(width, channels);
  for (std::int64_t begin = 0; begin < count; begin += kStretch) {
    const std::int64_t here = std::min(kStretch, count - begin);
    kernels().deinterleave_i16(frames + begin * width, here, width, rows.of_channel.data());
    for (std::int64_t i = 0; i < channels.size; ++i) {
      const auto channel = static_cast<std::size_t>(channels[i]);
      widen(rows.of_channel[channel], here, out + i * stride + begin);
    }
  }
}

template void pick_channels(const std::int16_t*, std::int64_t, std::int64_t,
                            Span<const std::int64_t>, std::int16_t*, std::int64_t);
template void pick_channels(const std::int16_t*, std::int64_t, std::int64_t,
                            Span<const std::int64_t>, std::int32_t*, std::int64_t);
template void pick_channels(const std::int16_t*, std::int64_t, std::int64_t,
                            Span<const std::int64_t>, float*, std::int64_t);
template void pick_channels(const std::int16_t*, std::int64_t, std::int64_t,
                            Span<const std::int64_t>, double*, std::int64_t);

template <class Stored>
ArraySource<Stored>::ArraySource(std::vector<const Stored*> channels, std::int64_t num_samples,
                                 std::int64_t sample_stride)
    : channels_(std::move(channels)), num_samples_(num_samples), sample_stride_(sample_stride) {
  interleaved_ = num_channels() > 1 && sample_stride == num_channels();
  for (std::size_t c = 1; c < channels_.size(); ++c) {
    interleaved_ = interleaved_ && channels_[c] == channels_[c - 1] + 1;
  }
}

template <class Stored>
template <class T>
void ArraySource<Stored>::copy(Span<const std::int64_t> channels, std::int64_t first,
                               std::int64_t count, T* out, std::int64_t stride) const {
  check_read(*this, channels, first, count);
  if constexpr (std::is_same_v<Stored, std::int16_t>) {
    if (interleaved_) {
      const std::int16_t* frames = channels_[0] + first * sample_stride_;
      pick_channels(frames, num_channels(), count, channels, out, stride);
      return;
    }
  }
  for (std::int64_t i = 0; i < channels.size; ++i) {
    const Stored* in = channels_[static_cast<std::size_t>(channels[i])] + first * sample_stride_;
    T* row = out + i * stride;
    if constexpr (std::is_same_v<Stored, std::int16_t>) {
      if (sample_stride_ == 1) {
        widen(in, count, row);
        continue;
      }
    }
    if (sample_stride_ == 1) {
      for (std::int64_t t = 0; t < count; ++t) row[t] = static_cast<T>(in[t]);
    } else {
      for (std::int64_t t = 0; t < count; ++t) row[t] = static_cast<T>(in[t * sample_stride_]);
    }
  }
}

template <class Stored>
void ArraySource<Stored>::read_frames(std::int64_t first, std::int64_t count,
                                      const TakeFrames& take) const {
  if constexpr (std::is_same_v<Stored, std::int16_t>) {
    take(channels_[0] + first * sample_stride_, count);
  } else {
    SampleSource::read_frames(first, count, take);
  }
}

template <class Stored>
void ArraySource<Stored>::read(Span<const std::int64_t> channels, std::int64_t first,
                               std::int64_t count, std::int16_t* out, std::int64_t stride) const {
  copy(channels, first, count, out, stride);
}
template <class Stored>
void ArraySource<Stored>::read(Span<const std::int64_t> channels, std::int64_t first,
                               std::int64_t count, std::int32_t* out, std::int64_t stride) const {
  copy(channels, first, count, out, stride);
}
template <class Stored>
void ArraySource<Stored>::read(Span<const std::int64_t> channels, std::int64_t first,
                               std::int64_t count, float* out, std::int64_t stride) const {
  copy(channels, first, count, out, stride);
}
template <class Stored>
void ArraySource<Stored>::read(Span<const std::int64_t> channels, std::int64_t first,
                               std::int64_t count, double* out, std::int64_t stride) const {
  copy(channels, first, count, out, stride);
}

template class ArraySource<std::int16_t>;
template class ArraySource<std::int32_t>;
template class ArraySource<float>;
template class ArraySource<double>;

}  // namespace physiofast
