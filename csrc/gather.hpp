// Windows of many planes into one buffer.
#pragma once

#include <cstdint>
#include <vector>

#include "half.hpp"
#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

// Row r is `length[r]` samples of plane `plane[r]` from `start[r]`; it goes to `out_start[r]`.
// A row with start < 0 is absent: zeros are written and its plane is not looked at.
struct RowTable {
  Span<const std::int64_t> plane;
  Span<const std::int64_t> start;
  Span<const std::int64_t> length;
  Span<const std::int64_t> out_start;
};

// The value of a sample of row r is sample * scale[r] + shift[r], in float32.
struct RowScales {
  Span<const float> scale;
  Span<const float> shift;
};

using Planes = std::vector<Span<const std::int16_t>>;

// Copies every row, as stored or dequantised, on at most `num_threads` threads. All rows are
// checked before any sample is written; throws BoundsError. Where rows overlap in `out` the later
// one stays. No plane lies in `out`.
void gather_rows(const Planes& planes, const RowTable& rows, Span<std::int16_t> out,
                 int num_threads, const StopQuery& stop);
void gather_rows(const Planes& planes, const RowTable& rows, const RowScales& scales,
                 Span<float> out, int num_threads, const StopQuery& stop);
void gather_rows(const Planes& planes, const RowTable& rows, const RowScales& scales,
                 Span<Half> out, int num_threads, const StopQuery& stop);

}  // namespace physiofast
