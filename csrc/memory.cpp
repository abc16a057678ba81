#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace physiofast {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

// From the begin of a huge page on, for only whole ones can be huge.
KeptMemory::Block map(std::size_t size) {
  constexpr std::size_t kPage = 4096;
  if (size > SIZE_MAX / 2) throw std::bad_alloc();
  size = round_up(size, kPage);
  void* mapped =
      ::mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* first = static_cast<char*>(mapped);
  const std::size_t before = round_up(reinterpret_cast<std::uintptr_t>(first), kHugePage) -
                             reinterpret_cast<std::uintptr_t>(first);
  if (before > 0) ::munmap(first, before);
  if (before < kHugePage) ::munmap(first + before + size, kHugePage - before);
  ::madvise(first + before, size, MADV_HUGEPAGE);  // a system without them gives small ones
  return {first + before, size};
}

}  // namespace

KeptMemory::Block KeptMemory::take(std::size_t size) {
  auto best = kept_.end();
  for (auto block = kept_.begin(); block != kept_.end(); ++block) {
    const bool fits = block->size >= size && block->size - size <= size / 4;
    if (fits && (best == kept_.end() || block->size <= best->size)) best = block;
  }
  if (best == kept_.end()) return map(size);
  const Block found = *best;
  kept_.erase(best);
  total_ -= found.size;
  return found;
}

void KeptMemory::give(Block block) noexcept {
  const auto unmap = [](Block old) { ::munmap(old.data, old.size); };
  if (block.size > kMostKept) return unmap(block);
  try {
    kept_.reserve(kept_.size() + 1);
  } catch (const std::bad_alloc&) {
    return unmap(block);
  }
  while (total_ + block.size > kMostKept) {
    total_ -= kept_.front().size;
    unmap(kept_.front());
    kept_.erase(kept_.begin());
  }
#ifdef MADV_FREE
  ::madvise(block.data, block.size, MADV_FREE);  // an old system keeps it instead
#endif
  kept_.push_back(block);
  total_ += block.size;
}

}  // namespace physiofast
