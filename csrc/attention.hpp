// Attention over packed windows that knows modalities and seconds, in float32, and its gradients.
#pragma once

#include <cstdint>

#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

// Tokens of one side, packed; window b has tokens [ends[b], ends[b + 1]).
struct AttentionTokens {
  Span<const std::int32_t> ends;  // [B + 1]
  const std::int32_t* modality;   // [T]
  const float* seconds;           // [T]
  std::int64_t places;            // T
};

// Rows of features [T, H, Dh], a token's `stride` elements apart and its heads side by side.
template <class T>
struct Features {
  T* data;
  std::int64_t stride;
};

// The logit of query i and key j of one window is scale * q_i . k_j + bias[h, m_i, m_j]
// - decay[h] * |t_i - t_j|; none where allowed[m_i, m_j] is 0. A modality outside [0, kinds) has
// bias 0 and may attend.
struct AttentionJob {
  AttentionTokens queries, keys;
  std::int64_t heads, width, kinds;
  const float* bias;            // [H, M, M]
  const std::uint8_t* allowed;  // [M, M]
  const float* decay;           // [H]; null: 0
  float scale;
  Features<const float> q, k, v;
};

// out [T_q, H, Dh] and the logarithm of each query's sum of exponentials, lse [H, T_q], -inf for a
// query without an allowed key, whose output is 0. Places of no window are left as they are.
void attend(const AttentionJob& job, float* out, float* lse, Workers workers,
            const StopQuery& stop);

// Where gradients go: of rows (those of no window are left as they are), of bias [H, M, M] and of
// decay [H].
struct AttentionGradients {
  Features<float> q, k, v;
  float *bias, *decay;
};

// `grad` is that of the output, lse what `attend` found. Sums run in one order.
void attend_backward(const AttentionJob& job, Features<const float> grad, const float* lse,
                     const AttentionGradients& gradients, Workers workers, const StopQuery& stop);

}  // namespace physiofast
