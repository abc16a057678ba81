// Plans: the visible tokens of each window, and packings of these, of the others and of both.
#pragma once

#include <cstdint>

#include "pool.hpp"

namespace physiofast {

// Windows of `tokens` tokens, of `kinds` modalities.
struct PlanJob {
  std::int64_t windows, tokens, kinds;
  const std::int64_t* quotas;     // [windows, kinds]; of fewer valid tokens all are visible
  const bool* valid;              // [windows, tokens]; the others are in no packing
  const std::int64_t* window_id;  // [windows]
  std::int64_t seed, step;
  const std::int32_t* modality;  // [tokens], ascending
  const float* seconds;          // [tokens]
};

// Where a packing is written: its tokens side by side, a tail that none fills, and orders of both.
struct PackingOut {
  std::int64_t places;
  std::int32_t* ids;          // [places]
  std::int32_t* cu_seqlens;   // [windows + 1]
  std::int32_t* modality;     // [places]
  float* seconds;             // [places]
  std::int32_t* slot;         // [windows, tokens]
  std::int32_t* by_modality;  // [places]
  std::int32_t* cu_modality;  // [kinds + 1]
};

constexpr int kPackings = 3;  // visible, hidden, present

// Of each modality of a window, the quota's valid tokens of the smallest random words are visible;
// of equal words the first. Throws BoundsError, and writes nothing, where modalities do not ascend
// within [0, kinds), ids do not fit 32 bits or a packing has fewer places than tokens.
void sample_plan(const PlanJob& job, const PackingOut (&out)[kPackings], Workers workers,
                 const StopQuery& stop);

}  // namespace physiofast
