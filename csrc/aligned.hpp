// Buffers that begin on a cache line, so that no vector load straddles two: that would halve the
// speed of the filters.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace physiofast {

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kLine));
  }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory, kLine); }

  friend bool operator==(CacheLineAllocator, CacheLineAllocator) { return true; }
  friend bool operator!=(CacheLineAllocator, CacheLineAllocator) { return false; }
};

template <class T>
using Buffer = std::vector<T, CacheLineAllocator<T>>;

}  // namespace physiofast
