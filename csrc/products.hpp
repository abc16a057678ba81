// Products of patches with the weights of their modalities, and their gradients, in float32.
//
// No bit depends on the number of threads: each sum is one thread's, and runs through depth in
// ascending order, that of a gradient in blocks of tokens that are added up.
#pragma once

#include <cstdint>
#include <vector>

#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

// Patches of all tokens, those of one modality after those of another without gaps; modality m has
// the tokens edges[m] to edges[m + 1] - 1, each of lengths[m] samples.
struct PatchValues {
  Span<const float> values;
  Span<const std::int32_t> edges;
  std::vector<std::int64_t> lengths;
};

// Weights [sum of lengths, width], those of modality m below those of the ones before it.
// Writes products [tokens, width].
void multiply_patches(const PatchValues& patches, const float* weight, std::int64_t width,
                      float* products, Workers workers, const StopQuery& stop);

// Of grad [tokens, width], the gradient of products. Writes weight [sum of lengths, width].
void multiply_gradients(const PatchValues& patches, const float* grad, std::int64_t width,
                        float* weight, Workers workers, const StopQuery& stop);

}  // namespace physiofast
