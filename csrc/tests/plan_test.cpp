// Plans without Python: against a sort of all keys, on one thread and several, and what is refused.
// Built and run plain and under sanitizers by csrc/tests/run.
#include "../plan.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "../philox.hpp"
#include "../span.hpp"
#include "check.hpp"

namespace {

using physiofast::PackingOut;
using physiofast::PlanJob;
using Integers = std::vector<std::int32_t>;

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

struct Packing {
  Packing(const PlanJob& job, std::int64_t places)
      : ids(size(places), -77),
        cu_seqlens(size(job.windows + 1), -77),
        modality(size(places), -77),
        slot(size(job.windows * job.tokens), -77),
        by_modality(size(places), -77),
        cu_modality(size(job.kinds + 1), -77),
        seconds(size(places), -77) {}

  PackingOut out() {
    return {static_cast<std::int64_t>(ids.size()),
            ids.data(),
            cu_seqlens.data(),
            modality.data(),
            seconds.data(),
            slot.data(),
            by_modality.data(),
            cu_modality.data()};
  }
  auto all() const {
    return std::tie(ids, cu_seqlens, modality, slot, by_modality, cu_modality, seconds);
  }

  Integers ids, cu_seqlens, modality, slot, by_modality, cu_modality;
  std::vector<float> seconds;
};

// A job and what it reads.
struct Drawn {
  Drawn(std::int64_t windows, std::int64_t tokens, std::int64_t kinds, unsigned seed)
      : valid(new bool[size(windows * tokens)]) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::int64_t end) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
    };
    for (std::int64_t i = 0; i < windows * kinds; ++i) {
      quotas.push_back(below(tokens / kinds + 3) - 1);
    }
    for (std::int64_t i = 0; i < windows * tokens; ++i) valid[size(i)] = below(5) > 0;
    for (std::int64_t b = 0; b < windows; ++b) ids.push_back(static_cast<std::int64_t>(random()));
    for (std::int64_t n = 0; n < tokens; ++n) {
      modality.push_back(static_cast<std::int32_t>(below(kinds)));
      seconds.push_back(static_cast<float>(n) / 2);
    }
    std::sort(modality.begin(), modality.end());
    job = {windows,
           tokens,
           kinds,
           quotas.data(),
           valid.get(),
           ids.data(),
           static_cast<std::int64_t>(random()),
           below(1 << 20),
           modality.data(),
           seconds.data()};
  }

  std::vector<std::int64_t> quotas, ids;
  std::unique_ptr<bool[]> valid;
  Integers modality;
  std::vector<float> seconds;
  PlanJob job;
};

std::vector<Packing> plan(const PlanJob& job, std::int64_t places, int threads) {
  std::vector<Packing> found(3, Packing(job, places));
  const PackingOut out[] = {found[0].out(), found[1].out(), found[2].out()};
  physiofast::sample_plan(job, out, threads, {});
  return found;
}

// The places of the visible tokens, by a sort of each modality's keys.
Integers visible_by_sort(const PlanJob& job) {
  Integers slot(size(job.windows * job.tokens), -1);
  for (std::int64_t b = 0; b < job.windows; ++b) {
    std::vector<std::tuple<std::int32_t, std::uint32_t, std::int64_t>> keys;
    const auto id = static_cast<std::uint64_t>(job.window_id[b]);
    for (std::int64_t n = 0; n < job.tokens; ++n) {
      std::uint32_t words[4];
      physiofast::philox({static_cast<std::uint32_t>(n / 4), static_cast<std::uint32_t>(job.step),
                          static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32)},
                         static_cast<std::uint64_t>(job.seed), words);
      if (job.valid[b * job.tokens + n]) keys.emplace_back(job.modality[n], words[n % 4], n);
    }
    std::sort(keys.begin(), keys.end());
    std::vector<std::int64_t> left(job.quotas + b * job.kinds, job.quotas + (b + 1) * job.kinds);
    for (const auto& [kind, word, n] : keys) {
      if (left[size(kind)]-- > 0) slot[size(b * job.tokens + n)] = 0;
    }
  }
  std::int32_t place = 0;
  for (std::int32_t& at : slot) at = at < 0 ? -1 : place++;
  return slot;
}

void test_philox_gives_the_published_answers() {
  std::uint32_t words[4];
  const auto expect = [&](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
    CHECK(words[0] == a && words[1] == b && words[2] == c && words[3] == d);
  };
  physiofast::philox({0, 0, 0, 0}, 0, words);
  expect(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8);
  physiofast::philox({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, 0x299F31D0A4093822, words);
  expect(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1);
}

void test_plans_are_those_of_a_sort_on_any_number_of_threads() {
  unsigned seed = 0;
  for (const std::int64_t windows : {0, 1, 3, 40}) {
    for (const std::int64_t tokens : {0, 1, 5, 390, 3000}) {
      for (const std::int64_t kinds : {1, 6, 40}) {
        const Drawn drawn(windows, tokens, kinds, ++seed);
        const auto alone = plan(drawn.job, windows * tokens + 9, 1);
        CHECK(alone[0].slot == visible_by_sort(drawn.job));
        const auto shared = plan(drawn.job, windows * tokens + 9, 4);
        for (std::size_t p = 0; p < 3; ++p) CHECK(alone[p].all() == shared[p].all());
      }
    }
  }
}

std::string refusal(const PlanJob& job, std::int64_t places) {
  std::vector<Packing> found(3, Packing(job, places));
  const PackingOut out[] = {found[0].out(), found[1].out(), found[2].out()};
  std::string message;
  try {
    physiofast::sample_plan(job, out, 2, {});
  } catch (const physiofast::BoundsError& error) {
    message = error.what();
  }
  for (const Packing& packing : found) CHECK(packing.all() == Packing(job, places).all());
  return message;
}

void test_nothing_is_written_where_something_is_refused() {
  Drawn drawn(8, 300, 5, 1);
  CHECK(refusal(drawn.job, 7).find("sizes.totals 0") == 0);
  std::swap(drawn.modality.front(), drawn.modality.back());
  CHECK(refusal(drawn.job, 2400).find("token_modality") == 0);
  PlanJob job = Drawn(1, 0, 1, 1).job;
  job.windows = std::int64_t{1} << 20;
  job.tokens = std::int64_t{1} << 11;
  const PackingOut nowhere[3] = {};
  try {
    physiofast::sample_plan(job, nowhere, 2, {});
    CHECK(false);
  } catch (const physiofast::BoundsError&) {
  }
}

}  // namespace

int main() {
  test_philox_gives_the_published_answers();
  test_plans_are_those_of_a_sort_on_any_number_of_threads();
  test_nothing_is_written_where_something_is_refused();
  std::puts("plan: all tests passed");
  return 0;
}
