// Buffers that begin on a cache line, so that no vector load straddles two: that would halve the
// speed of the filters. New elements are not initialised: every buffer is written before it is
// read.
#pragma once

#include <cstddef>
#include <cstdint>
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
  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }

  friend bool operator==(CacheLineAllocator, CacheLineAllocator) { return true; }
  friend bool operator!=(CacheLineAllocator, CacheLineAllocator) { return false; }
};

template <class T>
using Buffer = std::vector<T, CacheLineAllocator<T>>;

// A buffer of at least `size` elements that the thread keeps for its next task: memory that is
// given back comes anew as pages that the system clears first. Tag tells users apart.
template <class Tag, class T>
T* kept(std::int64_t size) {
  thread_local Buffer<T> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < size) {
    buffer.clear();
    buffer.resize(static_cast<std::size_t>(size));
  }
  return buffer.data();
}

}  // namespace physiofast
