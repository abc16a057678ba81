#include "gather.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "dequantise.hpp"
#include "stream.hpp"

namespace physiofast {
namespace {

// Of one task: 256 KB of int16, which costs far more than handing it out.
constexpr std::int64_t kTaskSamples = 256 * 1024;
// What is asked for ahead of time: 4 KB, far enough for memory to answer and little for any cache.
constexpr std::int64_t kPieceSamples = 8192;
// Output of this size has left the caches before it is read.
constexpr std::int64_t kStreamBytes = 8 << 20;

// Written as size - start so that no sum of two user values can overflow.
void check_range(const char* what, std::int64_t row, std::int64_t start, std::int64_t length,
                 std::int64_t size) {
  if (start < 0 || start > size || length > size - start) {
    throw BoundsError(what, row,
                      "a start from 0 to " + std::to_string(size - length) + " for " +
                          std::to_string(length) + " samples of " + std::to_string(size),
                      start);
  }
}

void check_row(const Planes& planes, const RowTable& rows, std::int64_t row,
               std::int64_t out_size) {
  const std::int64_t length = rows.length[row];
  if (length < 0) throw BoundsError("length of row", row, "0 or more", length);
  check_range("out_start of row", row, rows.out_start[row], length, out_size);
  if (rows.start[row] < 0) return;
  const auto num_planes = static_cast<std::int64_t>(planes.size());
  const std::int64_t plane = rows.plane[row];
  if (plane < 0 || plane >= num_planes) {
    throw BoundsError("plane of row", row, "0 to " + std::to_string(num_planes - 1), plane);
  }
  check_range("start of row", row, rows.start[row], length,
              planes[static_cast<std::size_t>(plane)].size);
}

// Rows laid end to end: `end[r]` is where row r ends. Checks every row.
struct Lengths {
  std::vector<std::int64_t> end;
  bool disjoint = true;  // rows follow one another in `out`, so threads can write them in any order

  std::int64_t total() const { return end.empty() ? 0 : end.back(); }
};

Lengths check_rows(const Planes& planes, const RowTable& rows, std::int64_t out_size) {
  Lengths lengths;
  lengths.end.resize(static_cast<std::size_t>(rows.plane.size));
  std::int64_t total = 0, written = 0;
  for (std::int64_t row = 0; row < rows.plane.size; ++row) {
    check_row(planes, rows, row, out_size);
    const std::int64_t left = std::numeric_limits<std::int64_t>::max() - total;
    if (rows.length[row] > left) {
      throw BoundsError("length of row", row, std::to_string(left) + " or less", rows.length[row]);
    }
    total += rows.length[row];
    lengths.end[static_cast<std::size_t>(row)] = total;
    lengths.disjoint = lengths.disjoint && rows.out_start[row] >= written;
    written = std::max(written, rows.out_start[row] + rows.length[row]);
  }
  return lengths;
}

// At most kPieceSamples of a row. `source` is null where the row is absent.
struct Piece {
  std::int64_t row;
  const std::int16_t* source;
  std::int64_t out_start;
  std::int64_t count;
};

// The pieces within [first, last) of the rows laid end to end.
class Pieces {
 public:
  Pieces(const Planes& planes, const RowTable& rows, const std::vector<std::int64_t>& end,
         std::int64_t first, std::int64_t last)
      : planes_(planes), rows_(rows), end_(end), at_(first), last_(last) {
    row_ = std::upper_bound(end.begin(), end.end(), first) - end.begin();
  }

  // False when none is left; the piece is then empty.
  bool next(Piece& piece) {
    piece = {0, nullptr, 0, 0};
    if (at_ >= last_) return false;
    while (row_end() == at_) ++row_;
    const std::int64_t offset = at_ - (row_end() - rows_.length[row_]);
    piece = {row_, source(offset), rows_.out_start[row_] + offset,
             std::min({row_end() - at_, last_ - at_, kPieceSamples})};
    at_ += piece.count;
    return true;
  }

 private:
  std::int64_t row_end() const { return end_[static_cast<std::size_t>(row_)]; }

  const std::int16_t* source(std::int64_t offset) const {
    if (rows_.start[row_] < 0) return nullptr;
    return planes_[static_cast<std::size_t>(rows_.plane[row_])].data + rows_.start[row_] + offset;
  }

  const Planes& planes_;
  const RowTable& rows_;
  const std::vector<std::int64_t>& end_;
  std::int64_t row_, at_, last_;
};

template <class Out>
std::size_t bytes_of(std::int64_t count) {
  return static_cast<std::size_t>(count) * sizeof(Out);
}

// What follows sample t of another piece; nothing where it is shorter or absent.
Ahead from(const Piece& piece, std::int64_t t, std::int64_t count) {
  const std::int64_t readable = piece.source == nullptr ? 0 : piece.count;
  if (t >= readable) return {nullptr, 0};
  return {piece.source + t, bytes_of<std::int16_t>(std::min(count, readable - t))};
}

// Samples as stored.
struct Copy {
  using Out = std::int16_t;

  void write(const Piece& piece, Out* target) const {
    std::memcpy(target, piece.source, bytes_of<Out>(piece.count));
  }

  void stream(const Piece& piece, Out* target, const Piece& next) const {
    stream_copy<1>(target, piece.source, bytes_of<Out>(piece.count), from(next, 0, piece.count));
  }
};

// Samples as values.
template <class Value>
struct Dequantise {
  using Out = Value;

  void write(const Piece& piece, Out* target) const {
    dequantise(piece.source, piece.count, scales.scale[piece.row], scales.shift[piece.row], target);
  }

  void stream(const Piece& piece, Out* target, const Piece& next) const {
    constexpr std::int64_t kBlock = 512;
    constexpr std::size_t kShrink = sizeof(Out) / sizeof(std::int16_t);
    Out block[kBlock];
    for (std::int64_t t = 0; t < piece.count; t += kBlock) {
      const std::int64_t count = std::min(kBlock, piece.count - t);
      write({piece.row, piece.source + t, 0, count}, block);
      stream_copy<kShrink>(target + t, block, bytes_of<Out>(count), from(next, t, count));
    }
  }

  const RowScales& scales;
};

// Rows lie far apart, and the processor's own prefetching begins anew in each of them: when a piece
// is asked for while the one before it is written, rows come nearly as fast as one long copy.
template <class Writer, class Out = typename Writer::Out>
void write_pieces(Pieces pieces, const Writer& writer, Out* out, bool stream) {
  Piece piece, following;
  for (bool more = pieces.next(piece); more; piece = following) {
    more = pieces.next(following);
    Out* target = out + piece.out_start;
    if (piece.source == nullptr) {
      std::memset(static_cast<void*>(target), 0, bytes_of<Out>(piece.count));
    } else if (stream) {
      writer.stream(piece, target, following);
    } else {
      writer.write(piece, target);
    }
  }
  if (stream) stream_end();
}

template <class Writer, class Out = typename Writer::Out>
void gather(const Planes& planes, const RowTable& rows, const Writer& writer, Span<Out> out,
            int num_threads, const StopQuery& stop) {
  const Lengths lengths = check_rows(planes, rows, out.size);
  const std::int64_t total = lengths.total();
  const bool past_caches = total >= kStreamBytes / static_cast<std::int64_t>(sizeof(Out));
  const auto task = [&](std::int64_t index, Watch&) {
    const std::int64_t first = index * kTaskSamples;
    const std::int64_t last = first + std::min(kTaskSamples, total - first);
    write_pieces(Pieces(planes, rows, lengths.end, first, last), writer, out.data, past_caches);
  };
  const std::int64_t num_tasks = total / kTaskSamples + (total % kTaskSamples != 0);
  parallel_for(lengths.disjoint ? num_threads : 1, num_tasks, task, stop);
}

}  // namespace

void gather_rows(const Planes& planes, const RowTable& rows, Span<std::int16_t> out,
                 int num_threads, const StopQuery& stop) {
  gather(planes, rows, Copy{}, out, num_threads, stop);
}

void gather_rows(const Planes& planes, const RowTable& rows, const RowScales& scales,
                 Span<float> out, int num_threads, const StopQuery& stop) {
  gather(planes, rows, Dequantise<float>{scales}, out, num_threads, stop);
}

void gather_rows(const Planes& planes, const RowTable& rows, const RowScales& scales,
                 Span<Half> out, int num_threads, const StopQuery& stop) {
  gather(planes, rows, Dequantise<Half>{scales}, out, num_threads, stop);
}

}  // namespace physiofast
