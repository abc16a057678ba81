#include "dequantise.hpp"

#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace physiofast {
namespace {

// A memory-mapped file's samples may begin at an odd byte.
float sample(const std::int16_t* at) {
  std::int16_t stored;
  std::memcpy(&stored, at, sizeof(stored));
  return static_cast<float>(stored);
}

using Convert = void (*)(const std::int16_t* in, std::int64_t count, float scale, float shift,
                         Half* out);

void by_bits(const std::int16_t* __restrict in, std::int64_t count, float scale, float shift,
             Half* __restrict out) {
  for (std::int64_t t = 0; t < count; ++t) {
    out[t] = to_half(sample(in + t) * scale + shift);
  }
}

#ifdef __x86_64__

__attribute__((target("avx2,f16c"))) void by_f16c(const std::int16_t* in, std::int64_t count,
                                                  float scale, float shift, Half* out) {
  const __m256 scales = _mm256_set1_ps(scale), shifts = _mm256_set1_ps(shift);
  std::int64_t t = 0;
  for (; t + 8 <= count; t += 8) {
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + t));
    const __m256 samples = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(stored));
    const __m256 values = _mm256_add_ps(_mm256_mul_ps(samples, scales), shifts);
    const __m128i halves = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + t), halves);
  }
  by_bits(in + t, count - t, scale, shift, out + t);
}

Convert choose() {
  __builtin_cpu_init();
  const bool has_f16c = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  return has_f16c ? by_f16c : by_bits;
}

#else

Convert choose() { return by_bits; }

#endif

const Convert convert = choose();

}  // namespace

void dequantise(const std::int16_t* __restrict in, std::int64_t count, float scale, float shift,
                float* __restrict out) {
  for (std::int64_t t = 0; t < count; ++t) out[t] = sample(in + t) * scale + shift;
}

void dequantise(const std::int16_t* in, std::int64_t count, float scale, float shift, Half* out) {
  convert(in, count, scale, shift, out);
}

}  // namespace physiofast
