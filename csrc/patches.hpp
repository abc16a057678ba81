// The samples of a packing's tokens, where they lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "span.hpp"

namespace physiofast {

// `length` samples that each stand for sample * scale + shift.
template <class Sample>
struct Patch {
  const Sample* samples;
  std::int64_t length;
  float scale, shift;
};

// Token id i is patch i % patches of row i / patches, `lengths[m]` samples for modality m.
template <class Sample>
struct PatchRows {
  Span<const Sample> samples;
  Span<const std::int64_t> row_start;
  const float *row_scale, *row_shift;  // [rows]
  Span<const std::int32_t> ids;        // of the packing's tokens; -1 in its tail
  const std::int32_t* modality;        // likewise
  std::vector<std::int64_t> lengths;
  std::int64_t patches;

  // The token at one place of the packing; of length 0 in the tail. Throws BoundsError where its
  // modality, its row or its samples are not there.
  Patch<Sample> operator[](std::int64_t place) const {
    const std::int64_t id = ids[place], kind = modality[place];
    if (id < 0) return {nullptr, 0, 1, 0};
    const auto kinds = static_cast<std::int64_t>(lengths.size());
    if (kind < 0 || kind >= kinds) {
      throw BoundsError("modality of token", place, "0 to " + std::to_string(kinds - 1), kind);
    }
    const std::int64_t row = id / patches, length = lengths[static_cast<std::size_t>(kind)];
    if (row >= row_start.size) {
      const std::int64_t ids_end = row_start.size * patches;
      throw BoundsError("token", place, "an id below " + std::to_string(ids_end), id);
    }
    const std::int64_t start = row_start[row], before = id % patches * length;
    const std::int64_t last = samples.size - length - before;
    if (start < 0 || start > last) {
      throw BoundsError("row of token", place, "a start from 0 to " + std::to_string(last), start);
    }
    return {samples.data + start + before, length, row_scale[row], row_shift[row]};
  }
};

// What belongs to one modality of tokens that stand in the order of their modalities: tokens
// [first, first + count) of it, of `length` samples each, which begin at `values`, and rows of the
// weights from `offset` on.
struct OfModality {
  std::int64_t first, count, length, values, offset;
};

// Of edges [M + 1] between modalities in an order of `places` and the lengths of their patches,
// whose values are `size` in all. Throws BoundsError for others.
inline std::vector<OfModality> by_modality(const std::vector<std::int64_t>& lengths,
                                           Span<const std::int32_t> edges, std::int64_t places,
                                           std::int64_t size) {
  std::vector<OfModality> found;
  std::int64_t edge = edges[0], values = 0, offset = 0;
  if (edge != 0) throw BoundsError("begin of modality", 0, "0", edge);
  for (std::size_t m = 0; m < lengths.size(); ++m) {
    const std::int64_t next = edges[static_cast<std::int64_t>(m) + 1];
    if (next < edge || next > places) {
      const std::string allowed = std::to_string(edge) + " to " + std::to_string(places);
      throw BoundsError("end of modality", static_cast<std::int64_t>(m), allowed, next);
    }
    found.push_back({edge, next - edge, lengths[m], values, offset});
    values += (next - edge) * lengths[m];
    offset += lengths[m];
    edge = next;
  }
  if (values != size) {
    throw BoundsError("values of all patches", 0, std::to_string(size), values);
  }
  return found;
}

}  // namespace physiofast
