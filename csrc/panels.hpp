// Matrices in panels of columns, for products: a panel's rows lie side by side and stay in the
// first cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.hpp"
#include "span.hpp"

namespace physiofast {

constexpr std::int64_t kPanel = 32;   // columns
constexpr std::int64_t kDepth = 128;  // rows of a panel that are multiplied at once
constexpr std::int64_t kTokens = 48;  // likewise
constexpr std::int64_t kBlocks = 8;   // of tokens whose gradients are summed before all

// Columns [first, first + used) of a matrix, of which `padded` are multiplied.
struct Panel {
  std::int64_t first, used, padded;
};

inline Panel panel_of(std::int64_t number, std::int64_t columns) {
  const std::int64_t first = number * kPanel, used = std::min(kPanel, columns - first);
  return {first, used, round_up(used, kFloatLanes)};
}

inline std::int64_t panels_in(std::int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Rows of a panel side by side, with zeros behind the last column.
inline void pack(const float* rows, std::int64_t count, std::int64_t stride, const Panel& panel,
                 float* out) {
  for (std::int64_t i = 0; i < count; ++i, out += panel.padded) {
    const float* row = rows + i * stride + panel.first;
    std::copy(row, row + panel.used, out);
    std::fill(out + panel.used, out + panel.padded, 0.0F);
  }
}

inline void unpack(const float* in, std::int64_t count, const Panel& panel, float* rows,
                   std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i, in += panel.padded) {
    std::copy(in, in + panel.used, rows + i * stride + panel.first);
  }
}

// out [rows, columns] (+)= a [rows, depth] times a matrix of `depth` rows in panels.
inline void multiply_panels(const float* a, std::int64_t stride_a, std::int64_t rows,
                            std::int64_t depth, const float* packed, std::int64_t columns,
                            float* out, std::int64_t stride, bool adds) {
  for (std::int64_t n = 0; n < panels_in(columns); ++n) {
    const Panel panel = panel_of(n, columns);
    for (std::int64_t k = 0; k < depth; k += kDepth) {
      const float* b = packed + panel.first * depth + k * panel.padded;
      kernels().multiply({a + k, stride_a, 1, b, panel.padded, rows, panel.padded,
                          std::min(kDepth, depth - k), out + panel.first, stride},
                         adds || k > 0);
    }
  }
}

}  // namespace physiofast
