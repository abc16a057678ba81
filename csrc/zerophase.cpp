#include "zerophase.hpp"

#include <algorithm>

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 1024;  // rows filtered at once, in the second-level cache

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

}  // namespace

CascadeBank::CascadeBank(const std::vector<const Cascade*>& lanes) {
  std::int64_t most = 0;
  for (std::size_t l = 0; l < lanes.size(); ++l) {
    most = std::max(most, lanes[l]->size());
    edges_[l] = lanes[l]->edge;
  }
  banks_.assign(static_cast<std::size_t>(most), SectionBank{});
  states_.assign(static_cast<std::size_t>(most), SectionState{});
  steady_ = states_;
  for (std::size_t s = 0; s < banks_.size(); ++s) {
    for (std::size_t l = 0; l < kDoubleLanes; ++l) {
      banks_[s].b0[l] = 1.0;
      if (l >= lanes.size() || s >= static_cast<std::size_t>(lanes[l]->size())) continue;
      const double* section = lanes[l]->sections.data() + 6 * s;
      banks_[s].b0[l] = section[0];
      banks_[s].b1[l] = section[1];
      banks_[s].b2[l] = section[2];
      banks_[s].a1[l] = section[4];
      banks_[s].a2[l] = section[5];
      steady_[s].z0[l] = lanes[l]->steady[2 * s];
      steady_[s].z1[l] = lanes[l]->steady[2 * s + 1];
    }
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
    kernels().sections(x, count, step, here, banks_.data() + s, states_.data() + s);
  }
}

void zero_phase(CascadeBank* bank, std::int64_t num_samples, const ZeroPhaseBlocks& blocks,
                const ReadRows& read, const TakeRows& take, Watch* watch) {
  const std::int64_t total = num_samples + 2 * blocks.edge;
  const std::int64_t capacity = std::min(total, blocks.block + blocks.run_in);
  std::vector<double> rows(at_row(capacity)), tail(at_row(kStretch));
  CascadeBank backward = *bank;
  std::int64_t begin = 0, filled = 0;  // rows [begin, begin + filled) have been filtered forward
  while (begin < total) {
    const std::int64_t wanted = std::min(capacity, total - begin);
    for (std::int64_t at = filled; at < wanted; at += kStretch) {
      watch->poll();
      const std::int64_t count = std::min(kStretch, wanted - at);
      double* here = rows.data() + at_row(at);
      read(begin + at, count, here);
      if (begin + at == 0) bank->settle(here);
      bank->run(here, count, 1);
    }
    const bool last_block = begin + wanted == total;
    const std::int64_t done = last_block ? wanted : blocks.block;
    if (last_block) hold_ends(*bank, blocks.edge, wanted, rows.data());
    backward.settle(rows.data() + at_row(wanted - 1));
    for (std::int64_t end = wanted; end > done;) {
      watch->poll();
      const std::int64_t count = std::min(kStretch, end - done);
      std::copy_n(rows.data() + at_row(end - count), at_row(count), tail.data());
      backward.run(tail.data() + at_row(count - 1), count, -1);
      end -= count;
    }
    for (std::int64_t end = done; end > 0;) {
      watch->poll();
      const std::int64_t count = std::min(kStretch, end);
      backward.run(rows.data() + at_row(end - 1), count, -1);
      end -= count;
    }
    const std::int64_t first = std::max(begin, blocks.edge);
    const std::int64_t last = std::min(begin + done, blocks.edge + num_samples);
    if (first < last) take(first - blocks.edge, last - first, rows.data() + at_row(first - begin));
    std::copy(rows.begin() + static_cast<std::ptrdiff_t>(at_row(done)),
              rows.begin() + static_cast<std::ptrdiff_t>(at_row(wanted)), rows.begin());
    filled = wanted - done;
    begin += done;
  }
}

}  // namespace physiofast
