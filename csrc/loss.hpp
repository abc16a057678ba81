// Squared errors of predicted patches and their gradients, in one pass over both.
#pragma once

#include <cstdint>
#include <vector>

#include "patches.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace physiofast {

// What the tokens of a packing predict. The error of a token is the mean of its squared errors; the
// loss is the sum of errors times weight[modality].
template <class Sample>
struct Targets {
  PatchRows<Sample> patches;
  const float* weight;            // [modalities]
  const std::int64_t* normalise;  // [modalities]: 1 where patches are to have mean 0, variance 1
  std::int64_t width;             // of a prediction; samples of the longest patch at least
};

// For each modality the sum of its tokens' errors, and their number.
struct ErrorSums {
  Span<double> total, number;
};

// The error of the token at place i, 0 in the tail. Writes the loss's gradient [width], 0 behind
// the token's samples; it may take the place of the prediction.
template <class Sample>
float error_of_token(const Targets<Sample>& targets, std::int64_t i, const float* pred,
                     float* grad);

// Of the errors of all places, in one order.
template <class Sample>
void sum_by_modality(const PatchRows<Sample>& patches, const std::vector<float>& errors,
                     const ErrorSums& out);

// Of predictions [count, width]; grad likewise.
template <class Sample>
void squared_errors(const FeatureRows& pred, const Targets<Sample>& targets, float* grad,
                    const ErrorSums& out, Workers workers, const StopQuery& stop);

}  // namespace physiofast
