// What passes over rows of features share: how the rows are divided among threads, and written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace physiofast {

// Calls work(first, last) for stretches of about the same number of rows, of 128 KB at most and one
// at least for each that works: results may not depend on where one ends. As many work as all of it
// is worth, which takes as long as a copy of `floats`.
template <class Work>
void for_stretches(std::int64_t count, std::int64_t floats_each, std::int64_t floats,
                   Workers workers, const StopQuery& stop, Work work) {
  workers = workers.worth(floats);
  constexpr std::int64_t kFloats = 1 << 15;
  const std::int64_t most =
      std::max<std::int64_t>(1, kFloats / std::max<std::int64_t>(1, floats_each));
  const std::int64_t stretches =
      std::max((count + most - 1) / most, std::min<std::int64_t>(count, workers.count));
  const auto task = [&](std::int64_t s, Watch&) {
    work(s * count / stretches, (s + 1) * count / stretches);
  };
  parallel_for(workers, stretches, task, stop);
}

// Writes rows of an output [count, width], a large one past the caches: it would not stay there,
// and a plain store reads the line that it replaces. stream_end() ends a thread's writing.
class RowWriter {
 public:
  RowWriter(std::int64_t count, std::int64_t width)
      : width_(width),
        streams_(count * width > kStreamFloats),
        zeros_(static_cast<std::size_t>(width)) {}

  void zero(float* out) const { write(zeros_.data(), width_, out); }

  void copy(const float* row, float* out) const { write(row, width_, out); }

  void sum(const float* a, const float* b, float* out) const {
    for (std::int64_t d = 0; d < width_; d += kPiece) {
      const std::int64_t count = std::min(kPiece, width_ - d);
      float piece[kPiece];
      kernels().add_f32(a + d, b + d, count, piece);
      write(piece, count, out + d);
    }
  }

 private:
  static constexpr std::int64_t kStreamFloats = 1 << 20;
  static constexpr std::int64_t kPiece = 256;

  void write(const float* from, std::int64_t count, float* out) const {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(float));
    if (streams_) {
      kernels().stream_bytes(out, from, bytes);
    } else {
      std::memcpy(out, from, static_cast<std::size_t>(bytes));
    }
  }

  std::int64_t width_;
  bool streams_;
  std::vector<float> zeros_;
};

}  // namespace physiofast
