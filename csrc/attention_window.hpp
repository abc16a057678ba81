// One head of one window, as the kernels of attention take it.
#pragma once

#include <cstdint>

namespace physiofast {

constexpr std::int64_t kMostKinds = 64;
// Queries that are worked on together, a multiple of every kGemmRows: gradients of keys and values
// are read and written once for each such block.
constexpr std::int64_t kQueryRows = 48;

struct AttentionWindow {
  const float *q, *k, *v;
  std::int64_t stride_q, stride_k, stride_v;
  std::int64_t length_q, length_k, width, kinds;
  const std::int32_t *modality_q, *modality_k;
  const float *seconds_q, *seconds_k;
  const float* bias;            // [M, M]
  const std::uint8_t* allowed;  // [M, M]
  float decay, scale;
  // Forward.
  float* out;
  std::int64_t stride_out;
  float* found_lse;  // [length_q]
  // Backward.
  const float* lse;  // [length_q]
  const float* grad;
  std::int64_t stride_grad;
  float *dq, *dk, *dv;
  std::int64_t stride_dq, stride_dk, stride_dv;
  float* dbias;   // [M, M]
  float* ddecay;  // [1]
};

static constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

// Floats that the kernels need beside that.
static constexpr std::int64_t attention_scratch(std::int64_t length_k, std::int64_t width,
                                                std::int64_t kinds) {
  const std::int64_t keys = round_up(length_k, 16), features = round_up(width, 16);
  const std::int64_t rows = kQueryRows;
  return 6 * keys * features + (2 * (kinds + 1) + 1 + 2 * rows) * keys + 3 * rows * features;
}

}  // namespace physiofast
