// Files that are read by position, by any number of threads at once.
#pragma once

#include <cstdint>
#include <string>

#include "span.hpp"

namespace physiofast {

// A regular file, open until the end of the object's life. Never memory-mapped: a file that shrinks
// while it is open gives an exception and not a signal.
class InputFile {
 public:
  // Throws std::filesystem::filesystem_error when it cannot be opened, FileError when it is
  // something else than a regular file.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }

  // Bytes it has now.
  std::int64_t size() const;

  // Reads out.size bytes from byte `offset`. Throws FileError when the file ends before.
  void read(std::int64_t offset, Span<std::uint8_t> out) const;

 private:
  [[noreturn]] void fail(const char* what, int error) const;

  std::string path_;
  int fd_;
};

}  // namespace physiofast
