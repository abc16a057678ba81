// float16 as bits, for compilers and machines that have no such type.
#pragma once

#include <cstdint>
#include <cstring>

namespace physiofast {

struct Half {
  std::uint16_t bits;
};

// IEEE 754 binary16, rounded to nearest, ties to even; a NaN keeps its sign alone. Written without
// branches, so that a loop over it becomes vector code on every instruction set; static, as each
// set has its own copy.
static inline Half to_half(float value) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  constexpr std::int32_t kTooLarge = (127 + 16) << 23;  // 65536, above every finite half
  constexpr std::int32_t kSmallestNormal = (127 - 14) << 23;
  constexpr std::int32_t kAlign = (127 - 15 + 23 - 10 + 1) << 23;  // 0.5
  constexpr std::int32_t kRebias = ((127 - 15) << 23) - 0xfff;
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::int32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;

  // Adding 0.5 leaves a subnormal half in the lowest bits of the sum, rounded by the addition.
  float magnitude, align;
  std::memcpy(&magnitude, &bits, sizeof(bits));
  std::memcpy(&align, &kAlign, sizeof(align));
  const float sum = magnitude + align;
  std::int32_t subnormal;
  std::memcpy(&subnormal, &sum, sizeof(sum));
  subnormal -= kAlign;

  const std::int32_t normal =
      (bits - kRebias + ((bits >> 13) & 1)) >> 13;  // carries up to infinity
  const std::int32_t special = bits > kInfinity ? 0x7e00 : 0x7c00;
  // Masks, as the compiler would make branches of conditional expressions.
  const std::int32_t is_subnormal = -static_cast<std::int32_t>(bits < kSmallestNormal);
  const std::int32_t is_special = -static_cast<std::int32_t>(bits >= kTooLarge);
  const std::int32_t finite = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  const std::int32_t half = (special & is_special) | (finite & ~is_special);
  return {static_cast<std::uint16_t>(half | sign)};
}

}  // namespace physiofast
