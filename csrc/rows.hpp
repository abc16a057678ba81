// Rows of float32 features, copied or added in pairs, each read and written once.
#pragma once

#include <cstdint>

#include "pool.hpp"
#include "span.hpp"

namespace physiofast {

// Row i begins at data[i * stride].
struct FeatureRows {
  const float* data;
  std::int64_t count, stride;

  const float* operator[](std::int64_t i) const { return data + i * stride; }
};

// Row numbers, such as places of tokens in a packing; a negative one names no row.
struct RowNumbers {
  const std::int32_t* at;
  std::int64_t stride;
  Span<const std::int32_t> through;  // of no data: at[i * stride] is the number itself

  // Throws BoundsError where the number is not below `rows`.
  std::int64_t operator()(std::int64_t i, std::int64_t rows) const {
    const std::int32_t number = at[i * stride];
    if (through.data == nullptr) return below(rows, i, number);
    return number < 0 ? -1 : below(rows, i, through[below(through.size, i, number)]);
  }

 private:
  static std::int64_t below(std::int64_t count, std::int64_t i, std::int32_t number) {
    if (number < count) return number;
    throw BoundsError("row", i, "a number below " + std::to_string(count), number);
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
