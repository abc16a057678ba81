// Resampling by a rational ratio: zeros are inserted between samples, the result is filtered, and
// every `down`-th sample is kept; only what is kept is computed, and no inserted zero is touched.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

class Polyphase {
 public:
  // `taps` filter at `up` times the input rate, are odd in number and centred, so the delay is
  // zero. Throws std::invalid_argument for other numbers.
  Polyphase(std::int64_t up, std::int64_t down, Span<const double> taps);

  std::int64_t up() const { return table_.up; }
  std::int64_t down() const { return table_.down; }

  // ceil(num_inputs * up / down)
  std::int64_t num_outputs(std::int64_t num_inputs) const;

  // The inputs that an output needs, both inclusive; outside the signal at its ends.
  std::int64_t first_input(std::int64_t output) const {
    return last_input(output) - (table_.length - 1);
  }
  std::int64_t last_input(std::int64_t output) const {
    return (output * table_.down + table_.half) / table_.up;
  }

  // Outputs that are best computed at once: they fill the lanes, or need few enough inputs.
  std::int64_t tile() const { return tile_; }

  // y[t] = output first + t for t of [0, count); input i is x[i - base], and x holds every input
  // from first_input(first) to last_input(first + count - 1). An output's bits do not depend on
  // how the outputs are divided into calls.
  void apply(const float* x, std::int64_t base, std::int64_t first, std::int64_t count, float* y,
             Watch* watch) const;

 private:
  std::vector<float> taps_;    // [up, length]
  PhaseTable table_;           // points into taps_
  std::int64_t lane_outputs_;  // consecutive outputs of one lane
  std::int64_t lane_rows_;     // inputs that they need; 0: too many for lanes
  std::int64_t tile_;
};

}  // namespace physiofast
