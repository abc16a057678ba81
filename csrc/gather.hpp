// Windows of many planes into one buffer.
#pragma once

#include <cstdint>
#include <vector>

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

// Copies every row. All rows are checked before any sample is written; throws BoundsError.
void gather_rows(const std::vector<Span<const std::int16_t>>& planes, const RowTable& rows,
                 Span<std::int16_t> out);

}  // namespace physiofast
