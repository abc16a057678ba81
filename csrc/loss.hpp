// Squared errors of predicted patches and their gradients, in one pass over both.
#pragma once

#include <cstdint>

#include "pool.hpp"

namespace physiofast {

// Token i predicts length[i] samples from first[i] on, each times scale[i] plus shift[i]; none
// where first[i] is negative. `factor` is what an error is multiplied with to become a gradient.
template <class Sample>
struct LossJob {
  const float* pred;  // [count, width]
  std::int64_t stride, count, width;
  const Sample* samples;
  std::int64_t num_samples;
  const std::int64_t* first;
  const std::int32_t* length;
  const float *scale, *shift;  // null: samples are values
  const float* factor;
};

// grad [count, width], 0 behind a token's length, and the mean of each token's squared errors, 0
// for none. Sums run in one order.
template <class Sample>
void squared_errors(const LossJob<Sample>& job, float* grad, float* mean, Workers workers,
                    const StopQuery& stop);

}  // namespace physiofast
