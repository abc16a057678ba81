// From stored samples to conditioned ones: scale, bridge what is invalid, filter, resample, and
// hand over, in blocks that stay in the cache.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "polyphase.hpp"
#include "pool.hpp"
#include "source.hpp"
#include "span.hpp"
#include "zerophase.hpp"

namespace physiofast {

// A stretch of invalid samples [start, stop), replaced by a line between its neighbours, which
// `condition` looks up.
struct Bridge {
  std::int64_t start, stop;
  double before, after;
};

struct Channel {
  std::int64_t source;          // its number in the source
  double scale, shift;          // value = sample * scale + shift
  const Cascade* cascade;       // applied forward and backward
  const Polyphase* resampler;   // null: the rate stays
  std::vector<Bridge> bridges;  // in order, apart from each other
};

// Takes conditioned samples. Called by several threads at once, for different stretches.
class Sink {
 public:
  Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  virtual ~Sink() = default;
  // Samples [first, first + count) of channel number `channel` of the job; y may be overwritten.
  virtual void put(std::int64_t channel, std::int64_t first, std::int64_t count, float* y) = 0;
};

// float32 rows of `length` samples: sample t of channel c lies at
// out[t / length * window_stride + c * length + t % length], `size` samples in all.
class FloatSink final : public Sink {
 public:
  FloatSink(float* out, std::int64_t size, std::int64_t length, std::int64_t window_stride)
      : out_(out),
        length_(length),
        window_stride_(window_stride),
        stream_(size >= kStreamBytes / static_cast<std::int64_t>(sizeof(float))) {}
  void put(std::int64_t channel, std::int64_t first, std::int64_t count, float* y) override;

 private:
  float* out_;
  std::int64_t length_, window_stride_;
  bool stream_;
};

// int16 planes at a stated step, and the range of what lies in kept patches.
class Int16Sink final : public Sink {
 public:
  struct Plane {
    std::int16_t* out;  // null: only the range is wanted
    float lsb, shift;   // value = sample * lsb + shift
    const std::uint8_t* keep;
    std::int64_t patch;  // samples of a patch, [num_samples / patch] of which `keep` tells
    std::int64_t num_samples;
    float low, high;  // of kept samples; infinite the wrong way round when there are none
  };
  explicit Int16Sink(std::vector<Plane> planes) : planes_(std::move(planes)) {}
  void put(std::int64_t channel, std::int64_t first, std::int64_t count, float* y) override;
  const std::vector<Plane>& planes() const { return planes_; }

 private:
  std::vector<Plane> planes_;
  std::mutex mutex_;
};

struct Job {
  std::vector<Channel> channels;      // all with num_samples samples
  std::vector<std::int64_t> outputs;  // how many of each channel are wanted, from the first on
  std::int64_t num_samples;
  ZeroPhaseBlocks blocks;
  bool extend;  // resampling continues the ends by their values, else by zeros
};

// Conditions every channel. The bits do not depend on the number of threads.
void condition(const SampleSource& source, Job job, Sink* sink, int num_threads,
               const StopQuery& stop);

}  // namespace physiofast
