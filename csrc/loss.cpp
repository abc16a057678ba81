#include "loss.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "stretches.hpp"

namespace physiofast {
namespace {

void errors(const ErrorPiece& piece, const float* samples, std::int64_t count) {
  kernels().errors_f32(piece, samples, count);
}

void errors(const ErrorPiece& piece, const std::int16_t* samples, std::int64_t count) {
  kernels().errors_i16(piece, samples, count);
}

// The sum of what `term` makes of samples, by eight lanes that take turns.
template <class Sample, class Term>
double sum_of(const Patch<Sample>& patch, Term term) {
  constexpr std::int64_t kLanes = 8;
  double lanes[kLanes] = {};
  std::int64_t t = 0;
  for (; t + kLanes <= patch.length; t += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      lanes[l] += term(static_cast<double>(patch.samples[t + l]));
    }
  }
  for (std::int64_t l = 0; t < patch.length; ++t, ++l) {
    lanes[l] += term(static_cast<double>(patch.samples[t]));
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// The patch with a scale and a shift that give it mean 0 and, but for kEpsilon, variance 1.
template <class Sample>
Patch<Sample> normalised(Patch<Sample> patch) {
  constexpr double kEpsilon = 1e-6;
  const auto length = static_cast<double>(patch.length), scale = static_cast<double>(patch.scale);
  const double mean = sum_of(patch, [](double x) { return x; }) / length;
  const double squares = sum_of(patch, [mean](double x) { return (x - mean) * (x - mean); });
  patch.scale = static_cast<float>(scale / std::sqrt(squares / length * scale * scale + kEpsilon));
  patch.shift = static_cast<float>(-mean * static_cast<double>(patch.scale));  // equal samples: 0
  return patch;
}

}  // namespace

template <class Sample>
float error_of_token(const Targets<Sample>& targets, std::int64_t i, const float* pred,
                     float* grad) {
  Patch<Sample> patch = targets.patches[i];
  const std::int64_t length = patch.length, width = targets.width;
  if (length > width) {
    throw BoundsError("patch of token", i, "at most " + std::to_string(width) + " samples", length);
  }
  std::fill(grad + length, grad + width, 0.0F);
  if (length == 0) return 0;
  const std::int32_t kind = targets.patches.modality[i];
  if (targets.normalise[kind] != 0) patch = normalised(patch);
  const float factor = 2 * targets.weight[kind] / static_cast<float>(length);
  float lanes[kErrorLanes] = {};
  // Not past the caches: what comes next, as a rule two products, reads the gradient at once.
  errors({pred, patch.scale, patch.shift, factor, grad, lanes}, patch.samples, length);
  for (std::int64_t half = kErrorLanes / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0] / static_cast<float>(length);
}

template <class Sample>
void sum_by_modality(const PatchRows<Sample>& patches, const std::vector<float>& errors,
                     const ErrorSums& out) {
  std::fill(out.total.data, out.total.data + out.total.size, 0.0);
  std::fill(out.number.data, out.number.data + out.number.size, 0.0);
  for (std::size_t i = 0; i < errors.size(); ++i) {
    if (patches.ids[static_cast<std::int64_t>(i)] < 0) continue;
    out.total[patches.modality[i]] += static_cast<double>(errors[i]);
    out.number[patches.modality[i]] += 1;
  }
}

template <class Sample>
void squared_errors(const FeatureRows& pred, const Targets<Sample>& targets, float* grad,
                    const ErrorSums& out, Workers workers, const StopQuery& stop) {
  const std::int64_t width = targets.width;
  std::vector<float> mean(static_cast<std::size_t>(pred.count));
  const std::int64_t work = pred.count * (width + 256);  // what a patch takes by itself
  for_stretches(pred.count, width, work, workers, stop, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      mean[static_cast<std::size_t>(i)] = error_of_token(targets, i, pred[i], grad + i * width);
    }
  });
  sum_by_modality(targets.patches, mean, out);
}

#define PHYSIOFAST_INSTANTIATE(Sample)                                                       \
  template float error_of_token(const Targets<Sample>&, std::int64_t, const float*, float*); \
  template void sum_by_modality(const PatchRows<Sample>&, const std::vector<float>&,         \
                                const ErrorSums&);                                           \
  template void squared_errors(const FeatureRows&, const Targets<Sample>&, float*,           \
                               const ErrorSums&, Workers, const StopQuery&);
PHYSIOFAST_INSTANTIATE(float)
PHYSIOFAST_INSTANTIATE(std::int16_t)
#undef PHYSIOFAST_INSTANTIATE

}  // namespace physiofast
