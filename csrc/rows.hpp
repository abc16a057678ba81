// Rows of float32 features, copied or added in pairs, each read and written once.
#pragma once

#include <cstdint>
#include <string>

#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

// Row i begins at data[i * stride].
struct FeatureRows {
  const float* data;
  std::int64_t count, stride;

  const float* operator[](std::int64_t i) const { return data + i * stride; }
};

// The number at `at` of a list, where it names one of `rows` or, being negative, none. Throws
// BoundsError for others.
inline std::int64_t row_or_none(std::int64_t number, std::int64_t at, std::int64_t rows) {
  if (number < rows) return number;
  throw BoundsError("row", at, "a number below " + std::to_string(rows), number);
}

// A place of a packing; there is no place that is none. Throws BoundsError for others.
inline std::int64_t place_of(std::int64_t number, std::int64_t at, std::int64_t places) {
  if (number >= 0 && number < places) return number;
  throw BoundsError("place", at, "0 to " + std::to_string(places - 1), number);
}

// Row numbers, such as places of tokens in a packing; a negative one names no row.
struct RowNumbers {
  const std::int32_t* at;
  Span<const std::int32_t> through;  // of no data: at[i] is the number itself

  // Throws BoundsError where the number is not below `rows`.
  std::int64_t operator()(std::int64_t i, std::int64_t rows) const {
    if (through.data == nullptr) return row_or_none(at[i], i, rows);
    const std::int64_t number = row_or_none(at[i], i, through.size);
    return number < 0 ? -1 : row_or_none(through[number], i, rows);
  }
};

// Output row i is onto[i] + rows[from(i)], without the second where its number is negative.
struct PickJob {
  FeatureRows rows;
  RowNumbers from;
  FeatureRows onto;  // of no data: zeros
  std::int64_t count, width;
};

// Writes out [count, width]. Throws BoundsError where a number is beyond its rows.
void pick_rows(const PickJob& job, float* out, Workers workers, const StopQuery& stop);

}  // namespace physiofast
