// Decoding of WFDB signal files.
#pragma once

#include <cstdint>

#include "span.hpp"

namespace physiofast {

// `num_frames` frames of `num_channels` samples; a frame starts every `frame_stride` samples.
struct Frames {
  const std::int16_t* data;
  std::int64_t num_frames;
  std::int64_t num_channels;
  std::int64_t frame_stride;
};

// Writes the chosen channels as planes: out[i * num_frames + t] = frames[t, channels[i]].
// `out` holds channels.size * num_frames samples. Throws BoundsError before any write.
void decode_interleaved(const Frames& frames, Span<const std::int64_t> channels,
                        Span<std::int16_t> out);

}  // namespace physiofast
