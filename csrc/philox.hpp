// Random words that are a function of their counter and key.
#pragma once

#include <cstdint>

namespace physiofast {

// Philox-4x32-10 turns four words of counter into four random ones. Source: Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.
inline void philox(const std::uint32_t (&counter)[4], std::uint64_t key, std::uint32_t* words) {
  std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{c0} * 0xD2511F53U, b = std::uint64_t{c2} * 0xCD9E8D57U;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(b);
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// Four words for each of a window's blocks, a function of what is passed alone; `domain` keeps the
// draws of two purposes apart.
inline void window_words(std::int64_t seed, std::int64_t step, std::int64_t window_id,
                         std::int64_t domain, std::int64_t blocks, std::uint32_t* words) {
  const auto id = static_cast<std::uint64_t>(window_id);
  for (std::int64_t i = 0; i < blocks; ++i) {
    philox({static_cast<std::uint32_t>(i + (domain << 24)), static_cast<std::uint32_t>(step),
            static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32)},
           static_cast<std::uint64_t>(seed), words + 4 * i);
  }
}

}  // namespace physiofast
