// Buffers that begin on a cache line, so that no vector load straddles two: that would halve the
// speed of the filters. New elements are not initialised: every buffer is written before it is
// read. Large ones begin on a huge page, and ask for such: the filters' rows, 9 MB, then need a few
// entries of the address tables in place of 2300, which makes the full chain 2 % faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace physiofast {

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64}, kHugePage{2 << 20};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}

  T* allocate(std::size_t count) {
    void* memory = ::operator new(count * sizeof(T), alignment(count));
#ifdef __linux__
    if (alignment(count) == kHugePage) ::madvise(memory, count * sizeof(T), MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) { ::operator delete(memory, alignment(count)); }
  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }

  static std::align_val_t alignment(std::size_t count) {
    return count < (std::size_t{4} << 20) / sizeof(T) ? kLine : kHugePage;
  }

  friend bool operator==(CacheLineAllocator, CacheLineAllocator) { return true; }
  friend bool operator!=(CacheLineAllocator, CacheLineAllocator) { return false; }
};

template <class T>
using Buffer = std::vector<T, CacheLineAllocator<T>>;

// How many calls of the engine wait on this thread for a handler of signals, which may make
// another.
inline std::size_t& waiting_calls() {
  thread_local std::size_t count = 0;
  return count;
}

// A buffer of at least `size` elements that the thread keeps for its next task: memory that is
// given back comes anew as pages that the system clears first. Tag tells users apart, and a call
// that a handler makes has buffers of its own.
template <class Tag, class T>
T* kept(std::int64_t size) {
  thread_local std::vector<Buffer<T>> of_calls(1);
  if (of_calls.size() <= waiting_calls()) of_calls.resize(waiting_calls() + 1);
  Buffer<T>& buffer = of_calls[waiting_calls()];
  if (static_cast<std::int64_t>(buffer.size()) < size) {
    buffer.clear();
    buffer.resize(static_cast<std::size_t>(size));
  }
  return buffer.data();
}

}  // namespace physiofast
