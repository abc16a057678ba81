// Squared errors of predicted patches and their gradients, in one pass over both.
#pragma once

#include <cstdint>

#include "patches.hpp"
#include "pool.hpp"

namespace physiofast {

// Each token of a packing predicts its patch. The error of a token is the mean of its squared
// errors; the loss is the sum of errors times weight[modality].
template <class Sample>
struct LossJob {
  const float* pred;  // [count, width]
  std::int64_t stride, count, width;
  PatchRows<Sample> patches;
  const float* weight;            // [modalities]
  const std::int64_t* normalise;  // [modalities]: 1 where patches are to have mean 0, variance 1
};

// grad [count, width], the loss's, 0 behind a token's samples; and for each modality the sum of
// its tokens' errors, and their number. Sums run in one order.
template <class Sample>
void squared_errors(const LossJob<Sample>& job, float* grad, Span<double> total,
                    Span<double> number, Workers workers, const StopQuery& stop);

}  // namespace physiofast
