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

// The mean of a token's squared errors, and its gradient.
template <class Sample>
float error_of_token(const LossJob<Sample>& job, std::int64_t i, float* grad) {
  Patch<Sample> patch = job.patches[i];
  const std::int64_t length = patch.length;
  if (length > job.width) {
    throw BoundsError("patch of token", i, "at most " + std::to_string(job.width) + " samples",
                      length);
  }
  std::fill(grad + length, grad + job.width, 0.0F);
  if (length == 0) return 0;
  if (job.normalise[job.patches.modality[i]] != 0) patch = normalised(patch);
  const float factor = 2 * job.weight[job.patches.modality[i]] / static_cast<float>(length);
  float lanes[kErrorLanes] = {};
  // Not past the caches: what comes next, as a rule two products, reads the gradient at once.
  const float* pred = job.pred + i * job.stride;
  errors({pred, patch.scale, patch.shift, factor, grad, lanes}, patch.samples, length);
  for (std::int64_t half = kErrorLanes / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0] / static_cast<float>(length);
}

}  // namespace

template <class Sample>
void squared_errors(const LossJob<Sample>& job, float* grad, Span<double> total,
                    Span<double> number, Workers workers, const StopQuery& stop) {
  std::vector<float> mean(static_cast<std::size_t>(job.count));
  for_stretches(job.count, job.width, workers, stop, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      mean[static_cast<std::size_t>(i)] = error_of_token(job, i, grad + i * job.width);
    }
  });
  std::fill(total.data, total.data + total.size, 0.0);
  std::fill(number.data, number.data + number.size, 0.0);
  for (std::int64_t i = 0; i < job.count; ++i) {
    if (job.patches.ids[i] < 0) continue;
    total[job.patches.modality[i]] += static_cast<double>(mean[static_cast<std::size_t>(i)]);
    number[job.patches.modality[i]] += 1;
  }
}

template void squared_errors(const LossJob<float>&, float*, Span<double>, Span<double>, Workers,
                             const StopQuery&);
template void squared_errors(const LossJob<std::int16_t>&, float*, Span<double>, Span<double>,
                             Workers, const StopQuery&);

}  // namespace physiofast
