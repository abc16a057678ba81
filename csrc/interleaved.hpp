// Interleaved 16-bit samples to planes, eight channels and eight frames at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace physiofast {

// Frames of one sample per channel; channels [first_channel, first_channel + 8) go to eight rows.
struct EightChannels {
  const std::uint8_t* frames;
  std::int64_t frame_bytes;
  std::int64_t first_channel;
};

// How far past the last sample of its frames deinterleave() may read.
constexpr std::int64_t kEightPadding = 16;

using Eight [[gnu::vector_size(16)]] = std::int16_t;

// rows[j] of channel j of each frame. Three perfect shuffles of eight rows of eight are a
// transposition; every instruction set has them.
inline void transpose(Eight (&rows)[8]) {
  for (int round = 0; round < 3; ++round) {
    Eight next[8];
    for (int i = 0; i < 4; ++i) {
      const Eight a = rows[i], b = rows[i + 4];
      next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::memcpy(rows, next, sizeof rows);
  }
}

// out[j][t] is channel first_channel + j of frame first + t.
inline void deinterleave(const EightChannels& in, std::int64_t first, std::int64_t count,
                         std::int16_t* const (&out)[8]) {
  const std::uint8_t* from = in.frames + first * in.frame_bytes + 2 * in.first_channel;
  std::int64_t t = 0;
  for (; t + 8 <= count; t += 8) {
    Eight rows[8];
    for (int i = 0; i < 8; ++i) {
      std::memcpy(&rows[i], from + (t + i) * in.frame_bytes, sizeof rows[i]);
    }
    transpose(rows);
    for (int j = 0; j < 8; ++j) std::memcpy(out[j] + t, &rows[j], sizeof rows[j]);
  }
  for (; t < count; ++t) {
    std::int16_t row[8];
    std::memcpy(row, from + t * in.frame_bytes, sizeof row);
    for (int j = 0; j < 8; ++j) out[j][t] = row[j];
  }
}

}  // namespace physiofast
