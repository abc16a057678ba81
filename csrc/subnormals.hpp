// Subnormal numbers: the processor's own way, or flushed to zero, on one thread.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace physiofast {

// Whether this thread computes with subnormal numbers, for as long as this lives. While a filter
// rings out, its state would fall into them, and they are slow.
class Subnormals {
 public:
#if defined(__x86_64__)
  explicit Subnormals(bool exist) : saved_(_mm_getcsr()) {
    _mm_setcsr(exist ? saved_ & ~kFlush : saved_ | kFlush);
  }
  ~Subnormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlush = 0x8040U;
  unsigned saved_;
#else
  explicit Subnormals(bool) {}
  ~Subnormals() {}
#endif
  Subnormals(const Subnormals&) = delete;
  Subnormals& operator=(const Subnormals&) = delete;
};

}  // namespace physiofast
