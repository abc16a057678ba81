// Views and the bounds error that every entry point shares.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace physiofast {

// A view of `size` consecutive elements that somebody else owns (std::span needs C++20).
template <class T>
struct Span {
  T* data;
  std::int64_t size;

  T& operator[](std::int64_t i) const { return data[i]; }
};

// An index or a range that does not fit; thrown before anything is written.
class BoundsError : public std::out_of_range {
 public:
  BoundsError(const std::string& what, std::int64_t at, const std::string& allowed,
              std::int64_t got)
      : std::out_of_range(what + " " + std::to_string(at) + ": expected " + allowed + ", found " +
                          std::to_string(got)),
        index(at),
        expected(allowed),
        found(got) {}

  std::int64_t index;
  std::string expected;
  std::int64_t found;
};

}  // namespace physiofast
