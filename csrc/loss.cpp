#include "loss.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "stretches.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kLanes = 16;  // partial sums of one token
constexpr std::int64_t kPiece =
    256;  // samples that are worked on before their gradients are written

// Errors of up to kPiece samples, times `factor`, and their squares into the lanes.
template <class Sample>
void piece(const float* __restrict pred, const Sample* __restrict samples, std::int64_t count,
           float scale, float shift, float factor, float* __restrict grad,
           float* __restrict lanes) {
  std::int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      const float error = pred[d + l] - (static_cast<float>(samples[d + l]) * scale + shift);
      grad[d + l] = error * factor;
      lanes[l] += error * error;
    }
  }
  for (std::int64_t l = 0; d < count; ++d, ++l) {
    const float error = pred[d] - (static_cast<float>(samples[d]) * scale + shift);
    grad[d] = error * factor;
    lanes[l] += error * error;
  }
}

// The mean of a token's squared errors, and its gradient.
template <class Sample>
float token(const LossJob<Sample>& job, std::int64_t i, float* grad) {
  const Patch<Sample> patch = job.patches[i];
  const std::int64_t length = patch.length;
  if (length > job.width) {
    throw BoundsError("patch of token", i, "at most " + std::to_string(job.width) + " samples",
                      length);
  }
  std::fill(grad + length, grad + job.width, 0.0F);
  if (length == 0) return 0;
  const float factor = 2 * job.weight[job.patches.modality[i]] / static_cast<float>(length);
  float lanes[kLanes] = {};
  for (std::int64_t d = 0; d < length; d += kPiece) {
    const std::int64_t count = std::min(kPiece, length - d);
    float found[kPiece];
    piece(job.pred + i * job.stride + d, patch.samples + d, count, patch.scale, patch.shift, factor,
          found, lanes);
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(float));
    kernels().stream_bytes(grad + d, found, bytes);
  }
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
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
      mean[static_cast<std::size_t>(i)] = token(job, i, grad + i * job.width);
    }
    stream_end();
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
