// float16 by bits against its definition in float64, so that machines with their own conversion
// test it too. Built and run by csrc/tests/run.
#include "../half.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace {

double value_of(physiofast::Half half) {
  const int exponent = (half.bits >> 10) & 31, mantissa = half.bits & 1023;
  const double sign = (half.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// The nearest multiple of the spacing of halves, ties to even; infinite from 65520 on.
double expected(float value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), -14);
  const double spacing = std::ldexp(1, exponent - 10);
  const double rounded = std::nearbyint(value / spacing) * spacing;
  return std::fabs(rounded) < 65536 ? rounded : std::copysign(INFINITY, rounded);
}

void check(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  const double found = value_of(physiofast::to_half(value)), wanted = expected(value);
  const bool same = found == wanted && std::signbit(found) == std::signbit(wanted);
  if (same || (std::isnan(value) && std::isnan(found))) return;
  std::fprintf(stderr, "%08x: expected %g, found %g\n", bits, wanted, found);
  std::abort();
}

}  // namespace

int main() {
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low :
         {0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x3001, 0x7fff,
          0x8000, 0x9000, 0xefff, 0xf000, 0xffff}) {
      check(high << 16 | low);
    }
  }
  std::puts("half: all tests passed");
  return 0;
}
