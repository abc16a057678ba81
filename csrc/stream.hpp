// Writing past the caches, for output that is larger than them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace physiofast {

constexpr std::size_t kLineBytes = 64;

// What will be read next: `bytes` from `data`, asked for step by step while other lines are
// written.
struct Ahead {
  const void* data;
  std::size_t bytes;
};

inline void prefetch_once(const unsigned char* at) {
  constexpr int kRead = 0, kUsedOnce = 0;
  __builtin_prefetch(at, kRead, kUsedOnce);
}

#ifdef __SSE2__

inline void stream_line(unsigned char* target, const unsigned char* source) {
  for (std::size_t i = 0; i < kLineBytes; i += sizeof(__m128i)) {
    const auto part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), part);
  }
}

// Copies bytes without reading the target's lines first, as a plain store would. For each line of
// 64 bytes it asks for 64 / kShrink bytes of what comes next. Other threads see the bytes after
// stream_end().
template <std::size_t kShrink>
void stream_copy(void* out, const void* in, std::size_t bytes, const Ahead& ahead) {
  auto* target = static_cast<unsigned char*>(out);
  const auto* source = static_cast<const unsigned char*>(in);
  const auto* next = static_cast<const unsigned char*>(ahead.data);
  const std::size_t misplaced = -reinterpret_cast<std::uintptr_t>(target) % kLineBytes;
  std::size_t at = misplaced < bytes ? misplaced : bytes;
  std::memcpy(target, source, at);
  const std::size_t end = at + (bytes - at) / kLineBytes * kLineBytes;
  const std::size_t asked = ahead.bytes * kShrink < end ? ahead.bytes * kShrink : end;
  for (; at < asked; at += kLineBytes) {
    prefetch_once(next + at / kShrink);
    stream_line(target + at, source + at);
  }
  for (; at < end; at += kLineBytes) stream_line(target + at, source + at);
  std::memcpy(target + at, source + at, bytes - at);
}

inline void stream_end() { _mm_sfence(); }

#else

template <std::size_t kShrink>
void stream_copy(void* out, const void* in, std::size_t bytes, const Ahead& ahead) {
  const auto* next = static_cast<const unsigned char*>(ahead.data);
  for (std::size_t at = 0; at < ahead.bytes; at += kLineBytes) prefetch_once(next + at);
  std::memcpy(out, in, bytes);
}

inline void stream_end() {}

#endif

}  // namespace physiofast
