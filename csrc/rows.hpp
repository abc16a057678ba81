// Rows of float32 features, copied, added in pairs or summed, each read and written once.
#pragma once

#include <cstdint>

#include "pool.hpp"

namespace physiofast {

// Row i begins at data[i * stride].
struct FeatureRows {
  const float* data;
  std::int64_t count, stride;
};

// Row i is at at[i * stride].
struct RowNumbers {
  const std::int32_t* at;
  std::int64_t stride;

  std::int32_t operator[](std::int64_t i) const { return at[i * stride]; }
};

// Output row i is base[from[i]] + more[and_from[i]], without the second where its number is
// negative, and zeros where the first is.
struct PickJob {
  FeatureRows base, more;
  RowNumbers from, and_from;
  std::int64_t count, width;
};

// Writes out [count, width]. Throws BoundsError where a number is beyond its rows.
void pick_rows(const PickJob& job, float* out, Workers workers, const StopQuery& stop);

// Output row i is the sum, in order, of rows[numbers[i, k]] over k; negative ones name none.
struct SumJob {
  FeatureRows rows;
  const std::int32_t* numbers;
  std::int64_t stride_i, stride_k;
  std::int64_t count, terms, width;
};

// As pick_rows.
void sum_rows(const SumJob& job, float* out, Workers workers, const StopQuery& stop);

}  // namespace physiofast
