#include "gather.hpp"

#include <cstring>

namespace physiofast {
namespace {

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

void check_row(const std::vector<Span<const std::int16_t>>& planes, const RowTable& rows,
               std::int64_t row, std::int64_t out_size) {
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

}  // namespace

void gather_rows(const std::vector<Span<const std::int16_t>>& planes, const RowTable& rows,
                 Span<std::int16_t> out) {
  for (std::int64_t row = 0; row < rows.plane.size; ++row) check_row(planes, rows, row, out.size);
  for (std::int64_t row = 0; row < rows.plane.size; ++row) {
    const auto bytes = static_cast<std::size_t>(rows.length[row]) * sizeof(std::int16_t);
    if (bytes == 0) continue;
    std::int16_t* target = out.data + rows.out_start[row];
    if (rows.start[row] < 0) {
      std::memset(target, 0, bytes);
    } else {
      const auto plane = static_cast<std::size_t>(rows.plane[row]);
      std::memcpy(target, planes[plane].data + rows.start[row], bytes);
    }
  }
}

}  // namespace physiofast
