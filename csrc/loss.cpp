#include "loss.hpp"

#include <algorithm>
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

// The mean of a token's squared errors, and its gradient.
template <class Sample>
float error_of_token(const LossJob<Sample>& job, std::int64_t i, float* grad) {
  const Patch<Sample> patch = job.patches[i];
  const std::int64_t length = patch.length;
  if (length > job.width) {
    throw BoundsError("patch of token", i, "at most " + std::to_string(job.width) + " samples",
                      length);
  }
  std::fill(grad + length, grad + job.width, 0.0F);
  if (length == 0) return 0;
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
