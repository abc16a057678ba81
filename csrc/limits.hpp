// What headers may state; beyond, they are taken for damaged. physiofast/engine/limits.py says why.
#pragma once

namespace physiofast {

constexpr double kMinRateHz = 1e-3;
constexpr double kMaxRateHz = 1e5;
constexpr double kMaxDurationS = 100 * 86400.0;
constexpr double kMinGain = 1e-30;
constexpr double kMaxGain = 1e30;
constexpr double kMaxBaseline = 1e30;

}  // namespace physiofast
