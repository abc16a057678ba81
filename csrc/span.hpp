// Views and the errors that every entry point shares.
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

// An index or a range that does not fit; thrown before anything beyond it is read or written.
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

// A signal file that is not what its header says: which file, at which byte, what was expected
// there and what was found.
class FileError : public std::runtime_error {
 public:
  FileError(const std::string& file, std::int64_t at, const std::string& allowed,
            const std::string& got)
      : std::runtime_error(file + ": byte " + std::to_string(at) + ": expected " + allowed +
                           ", found " + got),
        path(file),
        byte_offset(at),
        expected(allowed),
        found(got) {}

  std::string path;
  std::int64_t byte_offset;
  std::string expected;
  std::string found;
};

}  // namespace physiofast
