// Patches predicted by one linear map of features, their squared errors and all gradients, in one
// pass: predictions and their gradients never leave the caches.
#pragma once

#include <cstdint>

#include "loss.hpp"

namespace physiofast {

// Token i predicts weight times its features, plus bias.
struct LinearMap {
  const float *weight, *bias;  // [targets.width, width], [targets.width]
  std::int64_t width;
};

struct LinearGradients {
  float *features, *weight, *bias;  // [count, width], and as those of the map
};

// The errors of all tokens of features [count, width] and, if `gradients` is not null, those of the
// loss. No bit depends on the number of threads: gradients of stretches of tokens are added up in
// their order.
template <class Sample>
void linear_errors(const FeatureRows& features, const LinearMap& map,
                   const Targets<Sample>& targets, const ErrorSums& out,
                   const LinearGradients* gradients, Workers workers, const StopQuery& stop);

}  // namespace physiofast
