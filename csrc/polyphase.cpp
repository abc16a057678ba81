#include "polyphase.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "aligned.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kMostRatio = 1000000;
constexpr std::int64_t kGoodRows = 384;    // 24 KB of lanes: they stay in the first-level cache
constexpr std::int64_t kMostRows = 16384;  // 1 MB of lanes for each thread, 16 MB of their inputs
constexpr std::int64_t kPolledProducts = std::int64_t{1} << 22;  // some milliseconds

void check(std::int64_t up, std::int64_t down, std::int64_t num_taps) {
  if (up < 1 || down < 1 || up > kMostRatio || down > kMostRatio) {
    throw std::invalid_argument("up and down: expected 1 to " + std::to_string(kMostRatio) +
                                ", found " + std::to_string(up) + " and " + std::to_string(down));
  }
  if (num_taps % 2 == 0) {
    throw std::invalid_argument("taps: expected an odd number, found " + std::to_string(num_taps));
  }
}

// Taps of phase p, in the order of their inputs, with zeros in front where a phase is short.
std::vector<float> phases(std::int64_t up, std::int64_t length, Span<const double> taps) {
  std::vector<float> table(static_cast<std::size_t>(up * length), 0.0F);
  for (std::int64_t i = 0; i < taps.size; ++i) {
    const std::int64_t place = i % up * length + (length - 1 - i / up);
    table[static_cast<std::size_t>(place)] = static_cast<float>(taps[i]);
  }
  return table;
}

// 1 for symmetric taps, 2 when every second one beside the centre is zero too (half-band), else 0.
// A designed zero is rarely stored as one: what is far below float32's last bit counts as zero.
std::int64_t mirror_spacing(std::int64_t up, Span<const double> taps) {
  if (up != 1) return 0;
  double largest = 0;
  for (std::int64_t i = 0; i < taps.size; ++i) largest = std::max(largest, std::abs(taps[i]));
  const std::int64_t centre = taps.size / 2;
  bool half_band = true;
  for (std::int64_t d = 1; d <= centre; ++d) {
    const double before = taps[centre - d];
    if (static_cast<float>(before) != static_cast<float>(taps[centre + d])) return 0;
    half_band = half_band && (d % 2 == 1 || std::abs(before) <= 1e-12 * largest);
  }
  return half_band ? 2 : 1;
}

// In float64: sums of very many products would lose digits in float32.
float sum_of_products(const float* taps, const float* in, std::int64_t length) {
  constexpr std::int64_t kSums = 8;  // side by side, so that none waits for another
  double sums[kSums] = {};
  for (std::int64_t i = 0; i + kSums <= length; i += kSums) {
    for (std::int64_t s = 0; s < kSums; ++s) {
      sums[s] += static_cast<double>(taps[i + s]) * static_cast<double>(in[i + s]);
    }
  }
  for (std::int64_t i = length - length % kSums; i < length; ++i) {
    sums[i % kSums] += static_cast<double>(taps[i]) * static_cast<double>(in[i]);
  }
  double sum = 0;
  for (const double each : sums) sum += each;
  return static_cast<float>(sum);
}

struct Lanes;  // at most kMostRows rows
struct Sums;

}  // namespace

Polyphase::Polyphase(std::int64_t up, std::int64_t down, Span<const double> taps) {
  check(up, down, taps.size);
  const std::int64_t length = (taps.size + up - 1) / up;
  taps_ = phases(up, length, taps);
  table_ = {up, down, taps.size / 2, length, taps_.data(), mirror_spacing(up, taps)};
  const std::int64_t rows = std::max(kGoodRows, 2 * length);
  lane_outputs_ = std::max<std::int64_t>(1, rows / down) * up;
  lane_rows_ = lane_outputs_ / up * down + length + 1;
  if (lane_rows_ > kMostRows || lane_outputs_ > kMostRows) lane_rows_ = 0;
  tile_ = lane_rows_ > 0 ? kFloatLanes * lane_outputs_
                         : std::max<std::int64_t>(1, kMostRows * up / down);
}

std::int64_t Polyphase::num_outputs(std::int64_t num_inputs) const {
  return (num_inputs * table_.up + table_.down - 1) / table_.down;
}

void Polyphase::apply(const float* x, std::int64_t base, std::int64_t first, std::int64_t count,
                      float* y, Watch* watch) const {
  const Kernels& k = kernels();
  const std::int64_t least = kFloatLanes * table_.up;
  if (lane_rows_ > 0 && count >= least) {
    float* lanes = kept<Lanes, float>(lane_rows_ * kFloatLanes);
    float* sums = kept<Sums, float>(kFloatLanes * lane_outputs_);
    while (count >= least) {
      watch->poll();
      const std::int64_t each = std::min(lane_outputs_, count / least * table_.up);
      const std::int64_t begin = first_input(first);
      const std::int64_t rows = last_input(first + each - 1) - begin + 1;
      const std::int64_t apart = each / table_.up * table_.down;
      k.transpose_f32(x + (begin - base), kFloatLanes, rows, apart, lanes, kFloatLanes);
      k.fir_lanes(table_, lanes, begin, first, each, sums);
      k.transpose_f32(sums, each, kFloatLanes, kFloatLanes, y, each);
      first += kFloatLanes * each;
      y += kFloatLanes * each;
      count -= kFloatLanes * each;
    }
  }
  const std::int64_t slice = std::max<std::int64_t>(1, kPolledProducts / table_.length);
  for (std::int64_t done = 0; done < count; done += slice) {
    watch->poll();
    const std::int64_t some = std::min(slice, count - done);
    if (lane_rows_ > 0) {
      k.fir_scalar(table_, x, base, first + done, some, y + done);
      continue;
    }
    for (std::int64_t t = done; t < done + some; ++t) {  // filters that do not fit lanes, long ones
      const std::int64_t phase = ((first + t) * table_.down + table_.half) % table_.up;
      y[t] = sum_of_products(table_.taps + phase * table_.length,
                             x + (first_input(first + t) - base), table_.length);
    }
  }
}

}  // namespace physiofast
