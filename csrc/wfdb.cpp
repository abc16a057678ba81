#include "wfdb.hpp"

#include <algorithm>
#include <cstring>

namespace physiofast {
namespace {

// Frames per block: 13 interleaved channels of one block (26 KB) stay in the first-level cache
// while each of them is picked out, so the file is read from memory once.
constexpr std::int64_t kBlockFrames = 1024;

void check_decode(const Frames& frames, Span<const std::int64_t> channels, Span<std::int16_t> out) {
  for (std::int64_t i = 0; i < channels.size; ++i) {
    if (channels[i] < 0 || channels[i] >= frames.num_channels) {
      throw BoundsError("channels", i, "0 to " + std::to_string(frames.num_channels - 1),
                        channels[i]);
    }
  }
  if (out.size != channels.size * frames.num_frames) {
    throw BoundsError("size of out, channels", channels.size,
                      std::to_string(channels.size * frames.num_frames), out.size);
  }
}

void copy_strided(const std::int16_t* in, std::int64_t stride, std::int64_t count,
                  std::int16_t* out) {
  // A file's samples may begin at an odd byte.
  for (std::int64_t t = 0; t < count; ++t) std::memcpy(out + t, in + t * stride, sizeof(*out));
}

}  // namespace

void decode_interleaved(const Frames& frames, Span<const std::int64_t> channels,
                        Span<std::int16_t> out) {
  check_decode(frames, channels, out);
  for (std::int64_t begin = 0; begin < frames.num_frames; begin += kBlockFrames) {
    const std::int64_t count = std::min(kBlockFrames, frames.num_frames - begin);
    const std::int16_t* block = frames.data + begin * frames.frame_stride;
    for (std::int64_t i = 0; i < channels.size; ++i) {
      copy_strided(block + channels[i], frames.frame_stride, count,
                   out.data + i * frames.num_frames + begin);
    }
  }
}

}  // namespace physiofast
