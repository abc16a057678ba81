// Long reads of signal files on several threads.
#pragma once

#include "pool.hpp"
#include "wfdb.hpp"

namespace physiofast {

// As SignalFile::read_runs, on at most `num_threads` threads: the file is cut into stretches of
// whole frames, each of which is read once. Format 8, whose samples build on one another, stays on
// one thread. T is int16, int32, float or double.
template <class T>
void decode(const SignalFile& file, Span<const Run<T>> runs, Span<const Calibration> calibrations,
            int num_threads, const StopQuery& stop);

}  // namespace physiofast
