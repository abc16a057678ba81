#include "kernels.hpp"

#include <atomic>
#include <stdexcept>

#ifdef __SSE2__
#include <cpuid.h>
#include <emmintrin.h>
#endif

namespace physiofast {

#if defined(__x86_64__) && !defined(PHYSIOFAST_GENERIC_KERNELS)
namespace sse2 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#else
namespace generic {
extern const Kernels kKernels;
}
#endif

namespace {

#if defined(__x86_64__) && !defined(PHYSIOFAST_GENERIC_KERNELS)
// What the AVX2 form needs beside AVX2. Asked of the processor itself: before version 15,
// __builtin_cpu_supports of clang does not know "f16c".
bool converts_halves_and_fuses() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) && (ecx & bit_FMA);
}
#endif

std::vector<const Kernels*> runnable() {
#if defined(__x86_64__) && !defined(PHYSIOFAST_GENERIC_KERNELS)
  std::vector<const Kernels*> found{&sse2::kKernels};
  if (!converts_halves_and_fuses()) return found;
  if (__builtin_cpu_supports("avx2")) found.push_back(&avx2::kKernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kKernels);
  }
  return found;
#else
  return {&generic::kKernels};
#endif
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> pointer{runnable().back()};
  return pointer;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

void stream_end() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* form : runnable()) names.emplace_back(form->name);
  return names;
}

void select_kernels(const std::string& name) {
  std::string allowed;
  for (const Kernels* form : runnable()) {
    if (name == form->name) {
      chosen().store(form);
      return;
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(form->name);
  }
  throw std::invalid_argument("instruction set: expected one of " + allowed + ", found " + name);
}

}  // namespace physiofast
