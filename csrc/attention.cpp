#include "attention.hpp"

#include <string>
#include <utility>
#include <vector>

#include "aligned.hpp"
#include "attention_window.hpp"
#include "kernels.hpp"

namespace physiofast {
namespace {

struct Scratch;

std::int64_t windows_of(const AttentionJob& job) { return job.queries.ends.size - 1; }

// Head h of window b, without where its results go.
AttentionWindow window_of(const AttentionJob& job, std::int64_t b, std::int64_t h) {
  const std::int64_t first_q = job.queries.ends[b], first_k = job.keys.ends[b];
  const std::int64_t pairs = job.kinds * job.kinds;
  AttentionWindow window{};
  window.q = job.q.data + first_q * job.q.stride + h * job.width;
  window.k = job.k.data + first_k * job.k.stride + h * job.width;
  window.v = job.v.data + first_k * job.v.stride + h * job.width;
  window.stride_q = job.q.stride;
  window.stride_k = job.k.stride;
  window.stride_v = job.v.stride;
  window.length_q = job.queries.ends[b + 1] - first_q;
  window.length_k = job.keys.ends[b + 1] - first_k;
  window.width = job.width;
  window.kinds = job.kinds;
  window.modality_q = job.queries.modality + first_q;
  window.modality_k = job.keys.modality + first_k;
  window.seconds_q = job.queries.seconds + first_q;
  window.seconds_k = job.keys.seconds + first_k;
  window.bias = job.bias + h * pairs;
  window.allowed = job.allowed;
  window.decay = job.decay == nullptr ? 0.0F : job.decay[h];
  window.scale = job.scale;
  window.stride_out = job.heads * job.width;
  return window;
}

void check(const AttentionJob& job) {
  if (job.kinds < 1 || job.kinds > kMostKinds) {
    throw BoundsError("modalities", 0, "1 to " + std::to_string(kMostKinds), job.kinds);
  }
  const std::pair<const char*, const AttentionTokens*> sides[] = {{"packing_q", &job.queries},
                                                                  {"packing_k", &job.keys}};
  for (const auto& [name, side] : sides) {
    for (std::int64_t b = 0; b + 1 < side->ends.size; ++b) {
      if (side->ends[b] < 0 || side->ends[b + 1] < side->ends[b]) {
        throw BoundsError(std::string(name) + ".cu_seqlens", b + 1,
                          "at least " + std::to_string(side->ends[b]) + ", the end before it",
                          side->ends[b + 1]);
      }
    }
  }
}

// Calls work(window number, head, window, scratch memory) for every head of every window.
template <class Work>
void for_each_head(const AttentionJob& job, Workers workers, const StopQuery& stop, Work work) {
  check(job);
  const auto task = [&](std::int64_t b, Watch& watch) {
    for (std::int64_t h = 0; h < job.heads; ++h) {
      watch.poll();
      AttentionWindow window = window_of(job, b, h);
      const std::int64_t size = attention_scratch(window.length_k, job.width, job.kinds);
      work(b, h, &window, kept<Scratch, float>(size));
    }
  };
  parallel_for(workers, windows_of(job), task, stop);
}

}  // namespace

void attend(const AttentionJob& job, float* out, float* lse, Workers workers,
            const StopQuery& stop) {
  for_each_head(job, workers, stop,
                [&](std::int64_t b, std::int64_t h, AttentionWindow* window, float* scratch) {
                  const std::int64_t first = job.queries.ends[b];
                  window->out = out + first * window->stride_out + h * job.width;
                  window->found_lse = lse + h * job.queries.places + first;
                  kernels().attend(*window, scratch);
                });
}

void attend_backward(const AttentionJob& job, Features<const float> grad, const float* lse,
                     const AttentionGradients& gradients, Workers workers, const StopQuery& stop) {
  const std::int64_t pairs = job.kinds * job.kinds, each = job.heads * (pairs + 1);
  std::vector<float> parts(static_cast<std::size_t>(windows_of(job) * each));
  for_each_head(job, workers, stop,
                [&](std::int64_t b, std::int64_t h, AttentionWindow* window, float* scratch) {
                  const std::int64_t first_q = job.queries.ends[b], first_k = job.keys.ends[b];
                  const std::int64_t column = h * job.width;
                  window->grad = grad.data + first_q * grad.stride + column;
                  window->stride_grad = grad.stride;
                  window->lse = lse + h * job.queries.places + first_q;
                  window->dq = gradients.q.data + first_q * gradients.q.stride + column;
                  window->dk = gradients.k.data + first_k * gradients.k.stride + column;
                  window->dv = gradients.v.data + first_k * gradients.v.stride + column;
                  window->stride_dq = gradients.q.stride;
                  window->stride_dk = gradients.k.stride;
                  window->stride_dv = gradients.v.stride;
                  window->dbias = parts.data() + b * each + h * pairs;
                  window->ddecay = parts.data() + b * each + job.heads * pairs + h;
                  kernels().attend_backward(*window, scratch);
                });
  for (std::int64_t i = 0; i < each; ++i) {
    double sum = 0;
    for (std::int64_t b = 0; b < windows_of(job); ++b) {
      sum += static_cast<double>(parts[static_cast<std::size_t>(b * each + i)]);
    }
    const bool of_bias = i < job.heads * pairs;
    (of_bias ? gradients.bias[i] : gradients.decay[i - job.heads * pairs]) =
        static_cast<float>(sum);
  }
}

}  // namespace physiofast
