// Memory for large arrays, which a new one takes over from one that was freed.
//
// Fresh memory is cleared by the system page by page, which takes longer than decoding into it: 216
// MB of an EDF file cost 36 ms beside 32 ms of work. What is freed is therefore kept, up to
// kMostKept bytes, but lent back to the system, which takes it when it is short of memory
// (MADV_FREE, 0.1 ms for all of it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace physiofast {

class KeptMemory {
 public:
  static constexpr std::size_t kMostKept = std::size_t{256} << 20;

  struct Block {
    void* data;
    std::size_t size;
  };

  // At least `size` bytes of any content, in huge pages where the system has them. Throws
  // std::bad_alloc.
  Block take(std::size_t size);
  void give(Block block) noexcept;

 private:
  std::vector<Block> kept_;  // the longest unused one first
  std::size_t total_ = 0;
};

}  // namespace physiofast
