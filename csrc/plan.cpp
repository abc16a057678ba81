#include "plan.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "philox.hpp"
#include "span.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kTaskTokens = 1 << 11;
// What a valid token is: bit p says whether it belongs to packing p.
constexpr std::uint8_t kVisible = 0b101, kHidden = 0b110;

// What the second pass over windows is told by the first.
struct Choice {
  explicit Choice(const PlanJob& job)
      : kinds(static_cast<std::size_t>(job.kinds)),
        edges(kinds + 1),
        state(static_cast<std::size_t>(job.windows * job.tokens)) {
    for (auto& of_one : runs) of_one.resize((static_cast<std::size_t>(job.windows) + 1) * kinds);
  }

  std::int32_t* run(int packing, std::int64_t window) {
    return runs[packing].data() + static_cast<std::size_t>(window) * kinds;
  }

  std::size_t kinds;
  std::vector<std::int64_t> edges;  // where modalities begin in a window, and the last one's end
  std::vector<std::uint8_t> state;  // [windows, tokens]: kVisible, kHidden or 0
  // [windows + 1, kinds] of each packing: where in by_modality a window's tokens of a modality
  // begin; those of the next one are behind them. At first how many the window before has.
  std::vector<std::int32_t> runs[kPackings];
};

void find_edges(const PlanJob& job, Choice& choice) {
  std::int64_t kind = 0;
  for (std::int64_t n = 0; n < job.tokens; ++n) {
    const std::int64_t found = job.modality[n];
    if (found < kind || found >= job.kinds) {
      const std::string last = std::to_string(job.kinds - 1);
      throw BoundsError("token_modality", n, std::to_string(kind) + " to " + last, found);
    }
    for (; kind < found; ++kind) choice.edges[static_cast<std::size_t>(kind) + 1] = n;
  }
  std::fill(choice.edges.begin() + kind + 1, choice.edges.end(), job.tokens);
}

// A word for each token of a window, and up to three more.
struct Words;
std::uint32_t* draw_words(const PlanJob& job, std::int64_t window) {
  const std::int64_t blocks = (job.tokens + 3) / 4;
  std::uint32_t* words = kept<Words, std::uint32_t>(4 * blocks);
  window_words(job.seed, job.step, job.window_id[window], 0, blocks, words);
  return words;
}

// Makes `quota` of `count` tokens visible, of which more are hidden: those of the smallest words.
// Words are uniform, so a count of their first bits leaves few to be sorted.
struct Keys;
void choose(const std::uint32_t* words, std::int64_t count, std::int64_t quota,
            std::uint8_t* state) {
  constexpr int kBits = 6;
  const auto first_bits = [words](std::int64_t n) { return words[n] >> (32 - kBits); };
  std::int32_t sizes[1 << kBits] = {};
  for (std::int64_t n = 0; n < count; ++n) sizes[first_bits(n)] += state[n] == kHidden;
  std::uint32_t last = 0;  // first bits of the last word that is chosen
  for (; sizes[last] < quota; ++last) quota -= sizes[last];
  std::uint64_t* keys = kept<Keys, std::uint64_t>(sizes[last] + 1);
  std::int64_t rivals = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    const bool is_valid = state[n] == kHidden;
    state[n] = is_valid && first_bits(n) < last ? kVisible : state[n];
    keys[rivals] = std::uint64_t{words[n]} << 32 | static_cast<std::uint64_t>(n);
    rivals += is_valid && first_bits(n) == last;
  }
  std::nth_element(keys, keys + quota, keys + rivals);
  for (std::int64_t i = 0; i < quota; ++i) state[keys[i] & 0xFFFFFFFFU] = kVisible;
}

void choose_in(const PlanJob& job, std::int64_t window, Choice& choice) {
  const bool* valid = job.valid + window * job.tokens;
  const std::int64_t* quotas = job.quotas + window * job.kinds;
  std::uint8_t* state = choice.state.data() + window * job.tokens;
  for (std::int64_t n = 0; n < job.tokens; ++n) state[n] = valid[n] ? kHidden : 0;
  const std::uint32_t* words = draw_words(job, window);
  for (std::int64_t kind = 0; kind < job.kinds; ++kind) {
    const std::int64_t* edge = choice.edges.data() + kind;
    const std::int64_t present = std::count(state + edge[0], state + edge[1], kHidden);
    const std::int64_t visible = std::clamp<std::int64_t>(quotas[kind], 0, present);
    if (visible == present) {
      std::replace(state + edge[0], state + edge[1], kHidden, kVisible);
    } else if (visible > 0) {
      choose(words + edge[0], edge[1] - edge[0], visible, state + edge[0]);
    }
    const std::int64_t sizes[kPackings] = {visible, present - visible, present};
    for (int p = 0; p < kPackings; ++p) {
      choice.run(p, window + 1)[kind] = static_cast<std::int32_t>(sizes[p]);
    }
  }
}

void require_places(const Choice& choice, const PackingOut (&out)[kPackings]) {
  for (int p = 0; p < kPackings; ++p) {
    const std::int64_t used =
        std::accumulate(choice.runs[p].begin(), choice.runs[p].end(), std::int64_t{0});
    if (out[p].places < used) {
      throw BoundsError("sizes.totals", p, "at least " + std::to_string(used), out[p].places);
    }
  }
}

// Adds up what windows have of a packing.
void accumulate(const PlanJob& job, Choice& choice, int packing, const PackingOut& out) {
  out.cu_seqlens[0] = 0;
  std::fill(out.cu_modality, out.cu_modality + job.kinds + 1, 0);
  for (std::int64_t b = 0; b < job.windows; ++b) {
    const std::int32_t* sizes = choice.run(packing, b + 1);
    out.cu_seqlens[b + 1] = std::accumulate(sizes, sizes + job.kinds, out.cu_seqlens[b]);
    for (std::int64_t kind = 0; kind < job.kinds; ++kind) out.cu_modality[kind + 1] += sizes[kind];
  }
  std::partial_sum(out.cu_modality, out.cu_modality + job.kinds + 1, out.cu_modality);
  std::copy(out.cu_modality, out.cu_modality + job.kinds, choice.run(packing, 0));
  for (std::int64_t b = 0; b < job.windows; ++b) {
    const std::int32_t* before = choice.run(packing, b);
    std::int32_t* run = choice.run(packing, b + 1);
    for (std::int64_t kind = 0; kind < job.kinds; ++kind) run[kind] += before[kind];
  }
}

// Numbers of a window's tokens that belong to a packing, and where each stands from `first` on.
struct Tokens;
Span<const std::int32_t> list_members(Span<const std::uint8_t> state, int packing,
                                      std::int32_t first, std::int32_t* slot) {
  std::int32_t* tokens = kept<Tokens, std::int32_t>(state.size + 1);
  std::int32_t count = 0;
  for (std::int64_t n = 0; n < state.size; ++n) {  // without branches: nobody could foretell them
    const std::int32_t is_member = (state[n] >> packing) & 1;
    slot[n] = (first + count) | (is_member - 1);
    tokens[count] = static_cast<std::int32_t>(n);
    count += is_member;
  }
  return {tokens, count};
}

void pack(const PlanJob& job, std::int64_t window, Choice& choice, int packing,
          const PackingOut& out) {
  const std::int64_t before = window * job.tokens;
  std::int32_t place = out.cu_seqlens[window];
  const auto tokens =
      list_members({choice.state.data() + before, job.tokens}, packing, place, out.slot + before);
  std::int32_t* ids = out.ids + place;
  float* seconds = out.seconds + place;
  for (std::int64_t i = 0; i < tokens.size; ++i) {
    ids[i] = static_cast<std::int32_t>(before) + tokens[i];
    seconds[i] = job.seconds[tokens[i]];
  }
  const std::int32_t *run = choice.run(packing, window), *next = choice.run(packing, window + 1);
  for (std::int32_t kind = 0; kind < job.kinds; ++kind) {
    const std::int32_t size = next[kind] - run[kind];
    std::fill_n(out.modality + place, size, kind);
    std::iota(out.by_modality + run[kind], out.by_modality + next[kind], place);
    place += size;
  }
}

void fill_tail(const PlanJob& job, const PackingOut& out) {
  const std::int64_t used = out.cu_seqlens[job.windows];
  std::fill(out.ids + used, out.ids + out.places, -1);
  std::fill(out.modality + used, out.modality + out.places, -1);
  std::fill(out.seconds + used, out.seconds + out.places, 0.0F);
  std::iota(out.by_modality + used, out.by_modality + out.places, static_cast<std::int32_t>(used));
}

}  // namespace

void sample_plan(const PlanJob& job, const PackingOut (&out)[kPackings], Workers workers,
                 const StopQuery& stop) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (job.windows * job.tokens > kMost) {
    throw BoundsError("tokens of windows", 0, "at most " + std::to_string(kMost),
                      job.windows * job.tokens);
  }
  Choice choice(job);
  find_edges(job, choice);
  const std::int64_t each =
      std::max<std::int64_t>(1, kTaskTokens / std::max<std::int64_t>(1, job.tokens));
  const std::int64_t stretches = (job.windows + each - 1) / each;
  const auto for_stretch = [&](std::int64_t t, const auto& work) {
    const std::int64_t end = std::min(job.windows, (t + 1) * each);
    for (std::int64_t b = t * each; b < end; ++b) work(b);
  };
  const auto choosing = [&](std::int64_t t, Watch&) {
    for_stretch(t, [&](std::int64_t b) { choose_in(job, b, choice); });
  };
  const Workers few = workers.worth(128 * job.windows * job.tokens);  // a token takes 20 ns
  parallel_for(few, stretches, choosing, stop);
  require_places(choice, out);
  for (int p = 0; p < kPackings; ++p) accumulate(job, choice, p, out[p]);
  const auto packing = [&](std::int64_t t, Watch&) {
    if (t >= stretches) return fill_tail(job, out[t - stretches]);
    for_stretch(t, [&](std::int64_t b) {
      for (int p = 0; p < kPackings; ++p) pack(job, b, choice, p, out[p]);
    });
  };
  parallel_for(few, stretches + kPackings, packing, stop);
}

}  // namespace physiofast
