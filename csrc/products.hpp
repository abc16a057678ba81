// Patches times the weights of their modalities, and the gradients of these, in float32.
//
// No bit depends on the number of threads: each sum is one thread's, and runs through depth in
// ascending order, that of a gradient in blocks of tokens that are added up.
#pragma once

#include <cstdint>
#include <vector>

#include "patches.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace physiofast {

// Patches of all tokens, those of one modality after those of another without gaps; modality m has
// the tokens edges[m] to edges[m + 1] - 1, each of lengths[m] samples.
struct PatchValues {
  Span<const float> values;
  Span<const std::int32_t> edges;
  std::vector<std::int64_t> lengths;
};

// Token j of the patches is that at place order[j] of a packing, of id n modulo the table's rows:
// its features are the product of its patch, and table[n].
struct EmbedJob {
  PatchValues patches;
  const float* weight;  // [sum of lengths, width], of one modality below that of another
  FeatureRows table;
  const std::int32_t *order, *ids;
  std::int64_t count, width;
};

// Writes out [count, width]; zeros behind the last modality, in the tail.
void embed_patches(const EmbedJob& job, float* out, Workers workers, const StopQuery& stop);

// Of grad [count, width], in the order of patches. Writes weight [sum of lengths, width].
void weight_gradients(const PatchValues& patches, const float* grad, std::int64_t count,
                      std::int64_t width, float* weight, Workers workers, const StopQuery& stop);

}  // namespace physiofast
