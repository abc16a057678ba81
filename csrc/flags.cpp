#include "flags.hpp"

#include <algorithm>
#include <limits>

#include "aligned.hpp"
#include "kernels.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 8192;  // samples of a channel that are read at once

struct Raw;

bool fits_int32(std::int64_t value) {
  return value >= std::numeric_limits<std::int32_t>::min() &&
         value <= std::numeric_limits<std::int32_t>::max();
}

Extremes extremes_of(const std::int16_t* in, std::int64_t count, bool previous,
                     std::int64_t invalid) {
  const bool possible = invalid >= std::numeric_limits<std::int16_t>::min() &&
                        invalid <= std::numeric_limits<std::int16_t>::max();
  return kernels().extremes_i16(in, count, previous, possible,
                                static_cast<std::int16_t>(possible ? invalid : 0));
}

Extremes extremes_of(const std::int32_t* in, std::int64_t count, bool previous,
                     std::int64_t invalid) {
  const bool possible = fits_int32(invalid);
  return kernels().extremes_i32(in, count, previous, possible,
                                static_cast<std::int32_t>(possible ? invalid : 0));
}

// Patches [first, last) of all channels.
template <class T>
void extremes_of_patches(const SampleSource& source, Span<const std::int64_t> channels,
                         Span<const std::int64_t> edges, Span<const std::int64_t> invalid,
                         std::int64_t first, std::int64_t last, const PatchExtremes& out) {
  const std::int64_t begin = std::max<std::int64_t>(edges[first] - 1, 0);
  const std::int64_t size = edges[last] - begin, num_patches = edges.size - 1;
  T* planes = kept<Raw, T>(channels.size * size);
  source.read(channels, begin, size, planes, size);
  for (std::int64_t c = 0; c < channels.size; ++c) {
    for (std::int64_t p = first; p < last; ++p) {
      const T* in = planes + c * size + (edges[p] - begin);
      const Extremes found = extremes_of(in, edges[p + 1] - edges[p], edges[p] > begin, invalid[c]);
      const std::int64_t at = c * num_patches + p;
      out.low[at] = found.low;
      out.high[at] = found.high;
      out.step[at] = found.step;
      out.num_invalid[at] = static_cast<std::int32_t>(found.num_invalid);
    }
  }
}

void check_edges(const SampleSource& source, Span<const std::int64_t> channels,
                 Span<const std::int64_t> edges) {
  for (std::int64_t p = 0; p + 1 < edges.size; ++p) {
    if (edges[p] < 0 || edges[p + 1] <= edges[p]) {
      throw BoundsError("edges", p + 1, "more than edge " + std::to_string(edges[p]), edges[p + 1]);
    }
  }
  check_read(source, channels, 0, edges[edges.size - 1]);
}

}  // namespace

void patch_extremes(const SampleSource& source, Span<const std::int64_t> channels,
                    Span<const std::int64_t> edges, Span<const std::int64_t> invalid,
                    const PatchExtremes& out, int num_threads, const StopQuery& stop) {
  if (edges.size < 2 || channels.size == 0) return;
  check_edges(source, channels, edges);
  std::vector<std::int64_t> cuts{0};
  for (std::int64_t p = 1; p < edges.size; ++p) {
    if (p + 1 == edges.size || edges[p + 1] - edges[cuts.back()] > kStretch) cuts.push_back(p);
  }
  const auto task = [&](std::int64_t i, Watch& watch) {
    watch.poll();
    const std::int64_t first = cuts[static_cast<std::size_t>(i)];
    const std::int64_t last = cuts[static_cast<std::size_t>(i) + 1];
    if (source.fits_int16()) {
      extremes_of_patches<std::int16_t>(source, channels, edges, invalid, first, last, out);
    } else {
      extremes_of_patches<std::int32_t>(source, channels, edges, invalid, first, last, out);
    }
  };
  parallel_for(num_threads, static_cast<std::int64_t>(cuts.size()) - 1, task, stop);
}

std::vector<EqualRun> equal_runs(const SampleSource& source, std::int64_t channel,
                                 std::int32_t value, Span<const std::int64_t> first,
                                 Span<const std::int64_t> last, std::int64_t min_length,
                                 Watch* watch) {
  std::vector<EqualRun> found;
  std::vector<std::int32_t> samples;
  const std::int64_t size = source.num_samples(channel);
  EqualRun run{0, 0, value, value};
  bool open = false;
  const auto close = [&](std::int64_t at, std::int32_t after) {
    run.stop = at;
    run.after = after;
    open = false;
    if (run.stop - run.start >= min_length) found.push_back(run);
  };
  for (std::int64_t i = 0; i < first.size; ++i) {
    std::int32_t previous = value;
    for (std::int64_t at = first[i]; at < last[i]; at += kStretch) {
      watch->poll();
      const std::int64_t from = std::max<std::int64_t>(at - 1, 0);
      const std::int64_t to = std::min({at + kStretch, last[i], size});
      samples.resize(static_cast<std::size_t>(to - from));
      source.read({&channel, 1}, from, to - from, samples.data(), to - from);
      if (from < at) previous = samples[0];
      for (std::int64_t t = at; t < to; ++t) {
        const std::int32_t now = samples[static_cast<std::size_t>(t - from)];
        if (now == value && !open) {
          run = {t, t, t == 0 ? value : previous, value};
          open = true;
        } else if (now != value && open) {
          close(t, now);
        }
        previous = now;
      }
    }
    if (!open) continue;
    std::int32_t after = value;
    if (last[i] < size) source.read({&channel, 1}, last[i], 1, &after, 1);
    close(std::min(last[i], size), after);
  }
  return found;
}

void histogram_i16(Span<const std::int16_t> samples, std::int64_t patch,
                   Span<const std::uint8_t> keep, std::int64_t* counts, Watch* watch) {
  // Two tables, so that equal neighbours do not wait for each other's sum.
  std::vector<std::uint32_t> tables(2 * 65536, 0);
  std::uint32_t* even = tables.data() + 32768;
  std::uint32_t* odd = even + 65536;
  const auto flush = [&] {
    for (std::size_t i = 0; i < 65536; ++i) counts[i] += tables[i] + tables[i + 65536];
    std::fill(tables.begin(), tables.end(), 0U);
  };
  std::int64_t pending = 0;
  for (std::int64_t p = 0; p < keep.size && (p + 1) * patch <= samples.size; ++p) {
    if (p % 256 == 0) watch->poll();
    if (keep[p] == 0) continue;
    const std::int16_t* x = samples.data + p * patch;
    std::int64_t t = 0;
    for (; t + 2 <= patch; t += 2) {
      ++even[x[t]];
      ++odd[x[t + 1]];
    }
    if (t < patch) ++even[x[t]];
    pending += patch;
    if (pending < std::int64_t{1} << 31) continue;
    flush();
    pending = 0;
  }
  flush();
}

}  // namespace physiofast
