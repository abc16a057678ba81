#include "rows.hpp"

#include <algorithm>

#include "stretches.hpp"

namespace physiofast {

void pick_rows(const PickJob& job, float* out, Workers workers, const StopQuery& stop) {
  const RowWriter writer(job.count, job.width);
  for_stretches(job.count, job.width, workers, stop, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t from = job.from(i, job.rows.count);
      const float* onto = job.onto.data == nullptr ? nullptr : job.onto[i];
      float* row = out + i * job.width;
      if (from < 0) {
        onto == nullptr ? writer.zero(row) : writer.copy(onto, row);
      } else if (onto == nullptr) {
        writer.copy(job.rows[from], row);
      } else {
        writer.sum(onto, job.rows[from], row);
      }
    }
    stream_end();
  });
}

void sum_rows(const SumJob& job, float* out, Workers workers, const StopQuery& stop) {
  const std::int64_t width = job.width;
  // A stretch of sums stays in a cache while all their terms come by: the k-th of neighbours are
  // neighbours as a rule, and those of one sum are far apart.
  for_stretches(job.count, width, workers, stop, [&](std::int64_t first, std::int64_t last) {
    std::fill(out + first * width, out + last * width, 0.0F);
    for (std::int64_t k = 0; k < job.terms; ++k) {
      const RowNumbers numbers{job.numbers + k * job.stride_k, job.stride_i, {}};
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t number = numbers(i, job.rows.count);
        if (number >= 0) add_row(job.rows[number], width, out + i * width);
      }
    }
  });
}

}  // namespace physiofast
