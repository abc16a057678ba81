#include "zerophase.hpp"

#include <algorithm>

#include "aligned.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 2048;  // rows filtered at once, in the second-level cache

std::size_t at_row(std::int64_t row) { return static_cast<std::size_t>(row * kDoubleLanes); }

// The backward pass of a lane begins at the end of its own extension: what lies behind holds its
// last value, on which the filter rests. `rows` ends with the `outer` rows behind the signal.
void hold_ends(const CascadeBank& bank, std::int64_t outer, std::int64_t count, double* rows) {
  for (int l = 0; l < kDoubleLanes; ++l) {
    const std::int64_t own = count - outer + bank.edge(l);
    for (std::int64_t t = own; t < count; ++t) {
      rows[t * kDoubleLanes + l] = rows[(own - 1) * kDoubleLanes + l];
    }
  }
}

// Sections from the first on with zeros at 1 and -1, which the kernel has a shorter form for.
int light_sections(const Cascade& cascade) {
  int found = 0;
  for (const double* b = cascade.sections.data(); found < cascade.size(); b += 6, ++found) {
    if (b[1] != 0 || b[2] != -b[0]) break;
  }
  return found;
}

// Backward over rows [0, count), of which only those below `done` are replaced: the others, which
// the next block still needs, are what the filter runs in on.
void filter_back(CascadeBank* bank, double* rows, std::int64_t done, std::int64_t count,
                 Watch* watch) {
  Buffer<double> copy(at_row(kStretch));
  bank->settle(rows + at_row(count - 1));
  for (std::int64_t end = count; end > done;) {
    watch->poll();
    const std::int64_t size = std::min(kStretch, end - done);
    end -= size;
    std::copy_n(rows + at_row(end), at_row(size), copy.data());
    bank->run(copy.data() + at_row(size - 1), size, -1);
  }
  for (std::int64_t end = done; end > 0;) {
    watch->poll();
    const std::int64_t size = std::min(kStretch, end);
    bank->run(rows + at_row(end - 1), size, -1);
    end -= size;
  }
}

}  // namespace

CascadeBank::CascadeBank(const Cascade* const* lanes, std::size_t num_lanes) {
  std::int64_t most = 0;
  for (std::size_t l = 0; l < num_lanes; ++l) {
    most = std::max(most, lanes[l]->size());
    edges_[l] = lanes[l]->edge;
  }
  const auto num_sections = static_cast<std::size_t>(most);
  banks_.assign(num_sections, SectionBank{});
  states_.assign(num_sections, SectionState{});
  steady_ = states_;
  gains_.assign((num_sections + kMaxSections - 1) / kMaxSections, Gain{});
  for (Gain& gain : gains_) std::fill_n(gain.of_lane, kDoubleLanes, 1.0);
  num_light_ = static_cast<int>(most);
  for (std::size_t l = 0; l < num_lanes; ++l) {
    add_lane(l, *lanes[l]);
    num_light_ = std::min(num_light_, light_sections(*lanes[l]));
  }
}

// A section's states are those of the same section with b0 = 1 times all gains up to it.
void CascadeBank::add_lane(std::size_t l, const Cascade& cascade) {
  for (std::size_t s = 0; s < static_cast<std::size_t>(cascade.size()); ++s) {
    const double* section = cascade.sections.data() + 6 * s;
    double& gain = gains_[s / kMaxSections].of_lane[l];
    gain *= section[0];
    banks_[s].b1[l] = section[1] / section[0];
    banks_[s].b2[l] = section[2] / section[0];
    banks_[s].a1[l] = section[4];
    banks_[s].a2[l] = section[5];
    steady_[s].z0[l] = cascade.steady[2 * s] / gain;
    steady_[s].z1[l] = cascade.steady[2 * s + 1] / gain;
  }
}

void CascadeBank::settle(const double* row) {
  for (std::size_t s = 0; s < states_.size(); ++s) {
    for (int l = 0; l < kDoubleLanes; ++l) {
      states_[s].z0[l] = steady_[s].z0[l] * row[l];
      states_[s].z1[l] = steady_[s].z1[l] * row[l];
    }
  }
}

void CascadeBank::run(double* x, std::int64_t count, std::int64_t step) {
  for (std::size_t s = 0; s < banks_.size(); s += kMaxSections) {
    const auto here = static_cast<int>(std::min<std::size_t>(kMaxSections, banks_.size() - s));
    const int light = std::clamp(num_light_ - static_cast<int>(s), 0, here);
    kernels().sections(x, count, step, here, light, banks_.data() + s,
                       gains_[s / kMaxSections].of_lane, states_.data() + s);
  }
}

void zero_phase(std::vector<CascadeBank>* banks, std::int64_t num_samples,
                const ZeroPhaseBlocks& blocks, const ReadRows& read, const TakeRows& take,
                Watch* watch) {
  const std::int64_t total = num_samples + 2 * blocks.edge;
  const std::int64_t capacity = std::min(total, blocks.block + blocks.run_in);
  const std::size_t num_banks = banks->size();
  std::vector<Buffer<double>> rows(num_banks);
  for (Buffer<double>& bank : rows) bank.resize(at_row(capacity));
  std::vector<double*> places(num_banks);
  const auto from_row = [&](std::int64_t row) {
    for (std::size_t b = 0; b < num_banks; ++b) places[b] = rows[b].data() + at_row(row);
    return places.data();
  };
  std::vector<CascadeBank> backward = *banks;
  std::int64_t begin = 0, filled = 0;  // rows [begin, begin + filled) have been filtered forward
  while (begin < total) {
    const std::int64_t wanted = std::min(capacity, total - begin);
    for (std::int64_t at = filled; at < wanted; at += kStretch) {
      watch->poll();
      const std::int64_t count = std::min(kStretch, wanted - at);
      double* const* here = from_row(at);
      read(begin + at, count, here);
      for (std::size_t b = 0; b < num_banks; ++b) {
        if (begin + at == 0) (*banks)[b].settle(here[b]);
        (*banks)[b].run(here[b], count, 1);
      }
    }
    const bool last_block = begin + wanted == total;
    const std::int64_t done = last_block ? wanted : blocks.block;
    for (std::size_t b = 0; b < num_banks; ++b) {
      if (last_block) hold_ends((*banks)[b], blocks.edge, wanted, rows[b].data());
      filter_back(&backward[b], rows[b].data(), done, wanted, watch);
    }
    const std::int64_t first = std::max(begin, blocks.edge);
    const std::int64_t last = std::min(begin + done, blocks.edge + num_samples);
    if (first < last) take(first - blocks.edge, last - first, from_row(first - begin));
    for (Buffer<double>& bank : rows) {
      std::copy(bank.data() + at_row(done), bank.data() + at_row(wanted), bank.data());
    }
    filled = wanted - done;
    begin += done;
  }
}

}  // namespace physiofast
