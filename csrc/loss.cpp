#include "loss.hpp"

#include <algorithm>
#include <string>

#include "kernels.hpp"
#include "span.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kTaskFloats = 1 << 15;
constexpr std::int64_t kLanes = 16;  // partial sums of one token
constexpr std::int64_t kPiece =
    256;  // samples that are worked on before their gradients are written

template <class Sample>
void check(const LossJob<Sample>& job) {
  for (std::int64_t i = 0; i < job.count; ++i) {
    if (job.first[i] < 0) continue;
    if (job.length[i] < 1 || job.length[i] > job.width) {
      throw BoundsError("length", i, "1 to " + std::to_string(job.width), job.length[i]);
    }
    if (job.first[i] > job.num_samples - job.length[i]) {
      const std::int64_t last = job.num_samples - job.length[i];
      throw BoundsError("first sample", i, "at most " + std::to_string(last), job.first[i]);
    }
  }
}

// What one token's samples stand for.
struct Scale {
  bool are_values;
  float scale, shift;

  template <class Sample>
  float operator()(Sample sample) const {
    const auto value = static_cast<float>(sample);
    return are_values ? value : value * scale + shift;
  }
};

// Errors of up to kPiece samples, times `factor`, and their squares into the lanes.
template <class Sample>
void piece(const float* __restrict pred, const Sample* __restrict samples, std::int64_t count,
           Scale value, float factor, float* __restrict grad, float* __restrict lanes) {
  std::int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      const float error = pred[d + l] - value(samples[d + l]);
      grad[d + l] = error * factor;
      lanes[l] += error * error;
    }
  }
  for (std::int64_t l = 0; d < count; ++d, ++l) {
    const float error = pred[d] - value(samples[d]);
    grad[d] = error * factor;
    lanes[l] += error * error;
  }
}

template <class Sample>
float token(const LossJob<Sample>& job, std::int64_t i, float* grad) {
  const std::int64_t length = job.first[i] < 0 ? 0 : job.length[i];
  std::fill(grad + length, grad + job.width, 0.0F);
  if (length == 0) return 0;
  const Scale value{job.scale == nullptr, job.scale == nullptr ? 1.0F : job.scale[i],
                    job.shift == nullptr ? 0.0F : job.shift[i]};
  float lanes[kLanes] = {};
  for (std::int64_t d = 0; d < length; d += kPiece) {
    const std::int64_t count = std::min(kPiece, length - d);
    float found[kPiece];
    piece(job.pred + i * job.stride + d, job.samples + job.first[i] + d, count, value,
          job.factor[i], found, lanes);
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
void squared_errors(const LossJob<Sample>& job, float* grad, float* mean, Workers workers,
                    const StopQuery& stop) {
  check(job);
  const std::int64_t each =
      std::max<std::int64_t>(1, kTaskFloats / std::max<std::int64_t>(1, job.width));
  const auto task = [&](std::int64_t t, Watch&) {
    const std::int64_t last = std::min(job.count, (t + 1) * each);
    for (std::int64_t i = t * each; i < last; ++i) mean[i] = token(job, i, grad + i * job.width);
    stream_end();
  };
  parallel_for(workers, (job.count + each - 1) / each, task, stop);
}

template void squared_errors(const LossJob<float>&, float*, float*, Workers, const StopQuery&);
template void squared_errors(const LossJob<std::int16_t>&, float*, float*, Workers,
                             const StopQuery&);

}  // namespace physiofast
