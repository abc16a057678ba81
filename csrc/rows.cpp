#include "rows.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "span.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kTaskFloats = 1 << 15;
// Outputs of more floats are written past the caches: they would not stay there, and a plain store
// reads the line that it replaces.
constexpr std::int64_t kStreamFloats = 1 << 20;

void check(RowNumbers numbers, std::int64_t i, const FeatureRows& rows) {
  if (numbers[i] >= rows.count) {
    throw BoundsError("row", i, "a number below " + std::to_string(rows.count), numbers[i]);
  }
}

// Calls work(first, last) for stretches of `count` rows.
template <class Work>
void for_stretches(std::int64_t count, std::int64_t floats_each, Workers workers,
                   const StopQuery& stop, Work work) {
  const std::int64_t each =
      std::max<std::int64_t>(1, kTaskFloats / std::max<std::int64_t>(1, floats_each));
  const auto task = [&](std::int64_t t, Watch&) {
    work(t * each, std::min(count, (t + 1) * each));
  };
  parallel_for(workers, (count + each - 1) / each, task, stop);
}

void copy_row(const float* row, std::int64_t width, bool streams, float* out) {
  const std::int64_t bytes = width * static_cast<std::int64_t>(sizeof(float));
  if (streams) {
    kernels().stream_bytes(out, row, bytes);
  } else {
    std::memcpy(out, row, static_cast<std::size_t>(bytes));
  }
}

void add_row(const float* row, std::int64_t width, float* sum) {
  for (std::int64_t d = 0; d < width; ++d) sum[d] += row[d];
}

}  // namespace

void pick_rows(const PickJob& job, float* out, Workers workers, const StopQuery& stop) {
  for (std::int64_t i = 0; i < job.count; ++i) {
    check(job.from, i, job.base);
    check(job.and_from, i, job.more);
  }
  const std::int64_t width = job.width;
  const bool streams = job.count * width > kStreamFloats;
  const std::vector<float> zeros(static_cast<std::size_t>(width));
  for_stretches(job.count, width, workers, stop, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t from = job.from[i], also = job.and_from[i];
      float* row = out + i * width;
      const float* base = from < 0 ? zeros.data() : job.base.data + from * job.base.stride;
      if (from < 0 || also < 0) {
        copy_row(base, width, streams, row);
        continue;
      }
      const float* more = job.more.data + also * job.more.stride;
      for (std::int64_t d = 0; d < width; ++d) row[d] = base[d] + more[d];
    }
    stream_end();
  });
}

void sum_rows(const SumJob& job, float* out, Workers workers, const StopQuery& stop) {
  const auto numbers_of = [&](std::int64_t i) {
    return RowNumbers{job.numbers + i * job.stride_i, job.stride_k};
  };
  for (std::int64_t i = 0; i < job.count; ++i) {
    for (std::int64_t k = 0; k < job.terms; ++k) check(numbers_of(i), k, job.rows);
  }
  const std::int64_t width = job.width;
  // A stretch of sums stays in a cache while all their terms come by: the k-th of neighbours are
  // neighbours as a rule, and those of one sum are far apart.
  for_stretches(job.count, width, workers, stop, [&](std::int64_t first, std::int64_t last) {
    std::fill(out + first * width, out + last * width, 0.0F);
    for (std::int64_t k = 0; k < job.terms; ++k) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int32_t number = numbers_of(i)[k];
        if (number >= 0) add_row(job.rows.data + number * job.rows.stride, width, out + i * width);
      }
    }
  });
}

}  // namespace physiofast
