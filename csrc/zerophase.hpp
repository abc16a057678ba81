// Zero-phase recursive filtering of long signals in bounded memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.hpp"
#include "pool.hpp"

namespace physiofast {

// A cascade of second-order sections, the state that each takes on after a long input of 1, and
// how far a signal is continued at both ends, as its odd image, before it is filtered.
struct Cascade {
  std::vector<double> sections;  // [S, 6]: b0 b1 b2 1 a1 a2, b0 not 0
  std::vector<double> steady;    // [S, 2]
  std::int64_t edge = 0;

  std::int64_t size() const { return static_cast<std::int64_t>(sections.size()) / 6; }
};

// Up to kDoubleLanes cascades side by side, filled up with sections that change nothing.
class CascadeBank {
 public:
  CascadeBank(const Cascade* const* lanes, std::size_t num_lanes);

  // The extension of a lane; none for lanes that nobody uses.
  std::int64_t edge(int lane) const { return edges_[lane]; }

  // The states after a long input that equals `row` [kDoubleLanes].
  void settle(const double* row);
  // Filters rows of lanes in place: `count` of them, from `x` on, `step` (1 or -1) rows apart.
  void run(double* x, std::int64_t count, std::int64_t step);

 private:
  void add_lane(std::size_t lane, const Cascade& cascade);

  // The gains of the sections that one pass of the kernel holds.
  struct alignas(64) Gain {
    double of_lane[kDoubleLanes];
  };

  std::vector<SectionBank> banks_;
  std::vector<SectionState> states_, steady_;
  std::vector<Gain> gains_;
  int num_light_ = 0;  // of all lanes in use
  std::int64_t edges_[kDoubleLanes] = {};
};

// How a long signal is cut: the backward pass over a block starts `run_in` samples behind it, by
// when what it was started with has decayed, so no pass over the whole signal has to be kept.
struct ZeroPhaseBlocks {
  std::int64_t block;
  std::int64_t run_in;
  std::int64_t edge;  // the longest extension of any channel
};

// Gives rows [first, first + count) of the extended signal to each bank, kDoubleLanes a row; row
// `edge` is sample 0. A lane with a shorter extension holds its outermost value.
using ReadRows =
    std::function<void(std::int64_t first, std::int64_t count, double* const* rows_of_bank)>;
// Takes filtered rows of the signal proper; they may be overwritten.
using TakeRows =
    std::function<void(std::int64_t first, std::int64_t count, double* const* rows_of_bank)>;

// Forward, then backward, over num_samples + 2 * edge rows of every bank, as
// scipy.signal.sosfiltfilt.
void zero_phase(std::vector<CascadeBank>* banks, std::int64_t num_samples,
                const ZeroPhaseBlocks& blocks, const ReadRows& read, const TakeRows& take,
                Watch* watch);

}  // namespace physiofast
