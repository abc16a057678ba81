// What raw samples look like: extremes of each patch, runs of one value, exact histograms.
#pragma once

#include <cstdint>
#include <vector>

#include "pool.hpp"
#include "source.hpp"
#include "span.hpp"

namespace physiofast {

// Results of patch_extremes, [C, P] each. A patch without a valid sample has low > high.
struct PatchExtremes {
  std::int32_t* low;
  std::int32_t* high;
  std::int32_t* step;         // largest change between valid neighbours; also to the patch before
  std::int32_t* num_invalid;  // samples that equal the channel's invalid value
};

// Patch p of every channel is samples edges[p] up to edges[p + 1]. invalid[c] outside int32 means
// that every sample is valid. Throws BoundsError for edges that do not ascend within the signal.
void patch_extremes(const SampleSource& source, Span<const std::int64_t> channels,
                    Span<const std::int64_t> edges, Span<const std::int64_t> invalid,
                    const PatchExtremes& out, int num_threads, const StopQuery& stop);

// A run of equal samples [start, stop) and its neighbours, which are the value itself where the
// signal ends.
struct EqualRun {
  std::int64_t start, stop;
  std::int32_t before, after;
};

// Runs of `value` with at least min_length samples. Only stretches [first[i], last[i]) are looked
// at; they ascend, and a run does not go on behind the end of one.
std::vector<EqualRun> equal_runs(const SampleSource& source, std::int64_t channel,
                                 std::int32_t value, Span<const std::int64_t> first,
                                 Span<const std::int64_t> last, std::int64_t min_length,
                                 Watch* watch);

// Adds the samples of kept patches to counts[sample + 32768], 65536 of them. Patch p is samples
// [p * patch, (p + 1) * patch); samples behind the last patch that `keep` tells of are left out.
void histogram_i16(Span<const std::int16_t> samples, std::int64_t patch,
                   Span<const std::uint8_t> keep, std::int64_t* counts, Watch* watch);

}  // namespace physiofast
