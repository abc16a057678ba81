// Where samples come from: arrays in memory here, signal files in signalfile.hpp.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "span.hpp"

namespace physiofast {

// Channels of numbered samples. Every implementation may be read by several threads at once and
// throws instead of reading outside what it was given.
class SampleSource {
 public:
  SampleSource() = default;
  SampleSource(const SampleSource&) = delete;
  SampleSource& operator=(const SampleSource&) = delete;
  virtual ~SampleSource() = default;

  virtual std::int64_t num_channels() const = 0;
  virtual std::int64_t num_samples(std::int64_t channel) const = 0;
  // True when every stored number fits int16, so that int16 may be read.
  virtual bool fits_int16() const { return false; }
  // True when float32 holds every stored number exactly.
  virtual bool fits_float32() const { return fits_int16(); }

  // Samples [first, first + count) of some channels of one rate, as planes:
  // out[i * stride + t] is sample first + t of channels[i]. Numbers are those that are stored,
  // without gain or baseline. Integers that the output cannot hold are an error of the caller.
  virtual void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                    std::int16_t* out, std::int64_t stride) const = 0;
  virtual void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                    std::int32_t* out, std::int64_t stride) const = 0;
  virtual void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                    float* out, std::int64_t stride) const = 0;
  virtual void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
                    double* out, std::int64_t stride) const = 0;

  // Where a source holds frames of int16 samples, one of each channel: how many. 0 where it does
  // not.
  virtual std::int64_t frame_width() const { return 0; }
  // Gives frames [first, first + count), which the caller has checked, in one part or more.
  using TakeFrames = std::function<void(const std::int16_t* frames, std::int64_t count)>;
  virtual void read_frames(std::int64_t first, std::int64_t count, const TakeFrames& take) const;
};

// Throws BoundsError unless every channel exists and holds samples [first, first + count).
void check_read(const SampleSource& source, Span<const std::int64_t> channels, std::int64_t first,
                std::int64_t count);

// Picks channels out of `count` frames of `width` int16 samples: out[i * stride + t] is sample
// channels[i] of frame t. T is int16, int32, float or double; the caller has checked the bounds.
template <class T>
void pick_channels(const std::int16_t* frames, std::int64_t width, std::int64_t count,
                   Span<const std::int64_t> channels, T* out, std::int64_t stride);

// Channels in memory that outlive the source: each begins somewhere and has num_samples samples,
// `sample_stride` elements apart.
template <class Stored>
class ArraySource final : public SampleSource {
 public:
  ArraySource(std::vector<const Stored*> channels, std::int64_t num_samples,
              std::int64_t sample_stride);

  std::int64_t num_channels() const override { return static_cast<std::int64_t>(channels_.size()); }
  std::int64_t num_samples(std::int64_t) const override { return num_samples_; }
  bool fits_int16() const override { return std::is_same_v<Stored, std::int16_t>; }
  bool fits_float32() const override { return fits_int16() || std::is_same_v<Stored, float>; }
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
            std::int16_t* out, std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
            std::int32_t* out, std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count, float* out,
            std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count, double* out,
            std::int64_t stride) const override;
  std::int64_t frame_width() const override {
    return interleaved_ && fits_int16() ? num_channels() : 0;
  }
  void read_frames(std::int64_t first, std::int64_t count, const TakeFrames& take) const override;

 private:
  template <class T>
  void copy(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count, T* out,
            std::int64_t stride) const;

  std::vector<const Stored*> channels_;
  std::int64_t num_samples_, sample_stride_;
  bool interleaved_;  // channel c begins c elements behind channel 0, and a frame has no gap
};

}  // namespace physiofast
