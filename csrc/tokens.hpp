// Passes of the token ops over packings as they are, in float32.
#pragma once

#include <cstdint>

#include "patches.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace physiofast {

// Places of tokens in the order of their modalities: those of modality m are order[edges[m]] to
// order[edges[m + 1] - 1].
struct ByModality {
  const std::int32_t* order;
  Span<const std::int32_t> edges;
};

// Values of the patches of every token, modality after modality without gaps, into `out`, which is
// as long as they are.
template <class Sample>
void gather_patches(const PatchRows<Sample>& rows, const ByModality& by, Span<float> out,
                    Workers workers, const StopQuery& stop);

// Gradients of a packing's tokens: by_kind[j] is that of place order[j], and table [tokens, width]
// has the sums over windows, in their order, of what `slots` [windows, tokens] says of each id.
struct OrderJob {
  FeatureRows grad;
  const std::int32_t *slots, *order;
  std::int64_t windows, tokens, width;
};

// Writes by_kind where `slots` names a place, and all of `table`.
void order_gradients(const OrderJob& job, float* by_kind, float* table, Workers workers,
                     const StopQuery& stop);

// Where each of N token ids of B windows stands in two packings, [B, N], -1 for nowhere.
struct TokenSlots {
  const std::int32_t *visible, *present;
  std::int64_t windows, tokens;
};

// Token `ids[t]`, n modulo the tables' rows, is its encoding, at its slot, plus table_visible[n],
// or table_hidden[n] where it has none.
struct AssembleJob {
  FeatureRows encoded, table_visible, table_hidden;
  Span<const std::int32_t> slots;  // of the visible tokens
  const std::int32_t* ids;
  std::int64_t count, width;
};

// Writes out [count, width].
void assemble_rows(const AssembleJob& job, float* out, Workers workers, const StopQuery& stop);

struct AssembleGradients {
  float* encoded;           // [count, width] of the visible tokens
  float *visible, *hidden;  // [N, width] of the tables, summed in the order of windows
  std::int64_t count;
};

// Of grad, the gradient of the present tokens; `ids` are those of the visible ones.
void assemble_gradients(const FeatureRows& grad, std::int64_t width, const TokenSlots& slots,
                        const std::int32_t* ids, const AssembleGradients& out, Workers workers,
                        const StopQuery& stop);

}  // namespace physiofast
