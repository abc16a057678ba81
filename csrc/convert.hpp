// Inner loops of decoding: stored bytes to numbers, numbers to physical values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace physiofast {

// physical = (stored - baseline) / gain, and NaN at `invalid`; an `invalid` outside int32 is none.
struct Calibration {
  double gain;
  double baseline;
  std::int64_t invalid;
};

template <class Sample>
void copy_strided(const std::uint8_t* in, std::int64_t stride, std::int64_t count,
                  typename Sample::Value* out) {
  for (std::int64_t t = 0; t < count; ++t) out[t] = Sample::load(in + t * stride);
}

template <class Sample>
void copy_contiguous(const std::uint8_t* in, std::int64_t count, typename Sample::Value* out) {
  for (std::int64_t t = 0; t < count; ++t) out[t] = Sample::load(in + t * Sample::kBytes);
}

template <class Value, class T>
void to_stored(const Value* in, std::int64_t count, T* out) {
  for (std::int64_t t = 0; t < count; ++t) out[t] = static_cast<T>(in[t]);
}

// double divides by the gain; float multiplies by its reciprocal, which is taken in double.
template <class Value, class T>
void to_physical(const Value* in, std::int64_t count, const Calibration& calibration, T* out) {
  const double baseline = calibration.baseline, gain = calibration.gain, step = 1.0 / gain;
  const auto value = [=](Value stored) {
    const double distance = stored - baseline;
    return static_cast<T>(std::is_same_v<T, double> ? distance / gain : distance * step);
  };
  for (std::int64_t t = 0; t < count; ++t) out[t] = value(in[t]);
  using Limits = std::numeric_limits<Value>;
  if (calibration.invalid < Limits::min() || calibration.invalid > Limits::max()) return;
  // Invalid samples are rare; a loop that looks for one runs several times as fast as one that
  // chooses between two values.
  const auto invalid = static_cast<Value>(calibration.invalid);
  std::make_unsigned_t<Value> found = 0;
  for (std::int64_t t = 0; t < count; ++t) found |= in[t] == invalid;
  if (found == 0) return;
  for (std::int64_t t = 0; t < count; ++t) {
    if (in[t] == invalid) out[t] = std::numeric_limits<T>::quiet_NaN();
  }
}

// Calls f(position, count) for the stretches that samples [first, first + count) of a channel have
// in a file whose frames of `width` samples have that channel's `per_frame` from `start` on.
template <class F>
void for_each_stretch(std::int64_t per_frame, std::int64_t width, std::int64_t start,
                      std::int64_t first, std::int64_t count, F f) {
  std::int64_t frame = first / per_frame * width + start;
  std::int64_t inside = first % per_frame;
  while (count > 0) {
    const std::int64_t some = std::min(per_frame - inside, count);
    f(frame + inside, some);
    count -= some;
    frame += width;
    inside = 0;
  }
}

}  // namespace physiofast
