#include "decode.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "kernels.hpp"

namespace physiofast {
namespace {

// Bytes of one task: far more than handing it out costs, and few enough for Ctrl-C to be heard.
constexpr std::int64_t kTaskBytes = 1 << 20;

struct Frames {
  std::int64_t first, last;
};

template <class T>
Frames frames_of(const SignalFile& file, const Run<T>& run) {
  const std::int64_t each = file.layout().samples_per_frame[static_cast<std::size_t>(run.channel)];
  return {run.first / each, (run.first + run.count + each - 1) / each};
}

std::int64_t frames_of_task(const SignalFile& file) {
  std::int64_t width = 0;
  for (const std::int64_t each : file.layout().samples_per_frame) width += each;
  return std::max<std::int64_t>(1, kTaskBytes / (2 * width));
}

// The part of a run that lies in some frames; empty where there is none.
template <class T>
Run<T> part_of(const SignalFile& file, const Run<T>& run, Frames frames) {
  const std::int64_t each = file.layout().samples_per_frame[static_cast<std::size_t>(run.channel)];
  const std::int64_t end = run.first + run.count;
  const std::int64_t first = std::clamp(frames.first * each, run.first, end);
  const std::int64_t last = std::clamp(frames.last * each, first, end);
  return {run.channel, first, last - first, run.out + (first - run.first), nullptr, false};
}

}  // namespace

template <class T>
void decode(const SignalFile& file, Span<const Run<T>> runs, Span<const Calibration> calibrations,
            int num_threads, const StopQuery& stop) {
  Frames all{file.layout().num_frames, 0};
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < runs.size; ++i) {
    const Run<T>& run = runs[i];
    file.check_run(i, run.channel, run.first, run.count);
    if (run.count == 0) continue;
    total += run.count;
    const Frames here = frames_of(file, run);
    all = {std::min(all.first, here.first), std::max(all.last, here.last)};
  }
  const std::int64_t step = frames_of_task(file);
  if (file.layout().format == Format::k8) {  // each sample needs those before it
    const auto alone = [&](std::int64_t, Watch& watch) {
      file.read_runs<T>(runs, calibrations, [&watch] { watch.poll(); });
    };
    return parallel_for(1, 1, alone, stop);
  }
  if (all.last - all.first <= step) return file.read_runs<T>(runs, calibrations);
  const bool past_caches = total >= kStreamBytes / static_cast<std::int64_t>(sizeof(T));
  std::mutex sums;
  const auto task = [&](std::int64_t index, Watch& watch) {
    watch.poll();
    const std::int64_t first = all.first + index * step;
    std::vector<Run<T>> parts;
    std::vector<std::uint16_t> checksums(static_cast<std::size_t>(runs.size), 0);
    for (std::int64_t i = 0; i < runs.size; ++i) {
      parts.push_back(part_of(file, runs[i], {first, std::min(first + step, all.last)}));
      parts.back().past_caches = past_caches;
      if (runs[i].checksum != nullptr) {
        parts.back().checksum = &checksums[static_cast<std::size_t>(i)];
      }
    }
    file.read_runs<T>({parts.data(), runs.size}, calibrations);
    const std::lock_guard<std::mutex> lock(sums);
    for (std::int64_t i = 0; i < runs.size; ++i) {
      if (runs[i].checksum == nullptr) continue;
      *runs[i].checksum =
          static_cast<std::uint16_t>(*runs[i].checksum + checksums[static_cast<std::size_t>(i)]);
    }
  };
  parallel_for(num_threads, (all.last - all.first + step - 1) / step, task, stop);
}

template <class T>
void decode_windows(const SignalFile& file, Span<const std::int64_t> channels,
                    Span<const std::int64_t> starts, std::int64_t length, T* out,
                    Span<const Calibration> calibrations, int num_threads, const StopQuery& stop) {
  const std::int64_t total = starts.size * channels.size * length;  // of memory that is there
  const bool past_caches = total >= kStreamBytes / static_cast<std::int64_t>(sizeof(T));
  const auto task = [&](std::int64_t window, Watch& watch) {
    watch.poll();
    std::vector<Run<T>> runs;
    runs.reserve(static_cast<std::size_t>(channels.size));
    T* row = out + window * channels.size * length;
    for (std::int64_t c = 0; c < channels.size; ++c, row += length) {
      runs.push_back({channels[c], starts[window], length, row, nullptr, past_caches});
    }
    file.read_runs<T>({runs.data(), channels.size}, calibrations, [&watch] { watch.poll(); });
  };
  parallel_for(num_threads, starts.size, task, stop);
}

template void decode(const SignalFile&, Span<const Run<std::int16_t>>, Span<const Calibration>, int,
                     const StopQuery&);
template void decode(const SignalFile&, Span<const Run<std::int32_t>>, Span<const Calibration>, int,
                     const StopQuery&);
template void decode(const SignalFile&, Span<const Run<float>>, Span<const Calibration>, int,
                     const StopQuery&);
template void decode(const SignalFile&, Span<const Run<double>>, Span<const Calibration>, int,
                     const StopQuery&);

template void decode_windows(const SignalFile&, Span<const std::int64_t>, Span<const std::int64_t>,
                             std::int64_t, std::int16_t*, Span<const Calibration>, int,
                             const StopQuery&);
template void decode_windows(const SignalFile&, Span<const std::int64_t>, Span<const std::int64_t>,
                             std::int64_t, std::int32_t*, Span<const Calibration>, int,
                             const StopQuery&);
template void decode_windows(const SignalFile&, Span<const std::int64_t>, Span<const std::int64_t>,
                             std::int64_t, float*, Span<const Calibration>, int, const StopQuery&);
template void decode_windows(const SignalFile&, Span<const std::int64_t>, Span<const std::int64_t>,
                             std::int64_t, double*, Span<const Calibration>, int, const StopQuery&);

}  // namespace physiofast
