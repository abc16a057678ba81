// Where samples come from: arrays in memory here, signal files in wfdb.hpp.
#pragma once

#include <cstdint>
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
};

// Throws BoundsError unless every channel exists and holds samples [first, first + count).
void check_read(const SampleSource& source, Span<const std::int64_t> channels, std::int64_t first,
                std::int64_t count);

}  // namespace physiofast
