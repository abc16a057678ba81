// Long reads of signal files on several threads.
#pragma once

#include "pool.hpp"
#include "signalfile.hpp"

namespace physiofast {

// As SignalFile::read_runs, on at most `num_threads` threads: the file is cut into stretches of
// whole frames, each of which is read once. Format 8, whose samples build on one another, stays on
// one thread. T is int16, int32, float or double.
template <class T>
void decode(const SignalFile& file, Span<const Run<T>> runs, Span<const Calibration> calibrations,
            int num_threads, const StopQuery& stop);

// Windows of `length` samples of channels of one rate: out[(w * C + c) * length + t] is sample
// starts[w] + t of channels[c], of C channels. Each window is a read_runs of its own, so its errors
// are those; windows are read in parallel.
template <class T>
void decode_windows(const SignalFile& file, Span<const std::int64_t> channels,
                    Span<const std::int64_t> starts, std::int64_t length, T* out,
                    Span<const Calibration> calibrations, int num_threads, const StopQuery& stop);

}  // namespace physiofast
