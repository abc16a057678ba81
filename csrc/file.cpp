#include "file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace physiofast {

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // Opening a pipe without O_NONBLOCK waits for a writer, maybe for ever.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) fail("cannot open", errno);
  struct stat status;
  const int error = ::fstat(fd_, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode)) return;
  ::close(fd_);
  if (error != 0) fail("cannot inspect", error);
  if (S_ISDIR(status.st_mode)) fail("cannot read", EISDIR);
  throw FileError(path_, 0, "a regular file", "a device, pipe or socket");
}

InputFile::~InputFile() { ::close(fd_); }

std::int64_t InputFile::size() const {
  struct stat status;
  if (::fstat(fd_, &status) != 0) fail("cannot inspect", errno);
  return status.st_size;
}

void InputFile::read(std::int64_t offset, Span<std::uint8_t> out) const {
  std::int64_t done = 0;
  while (done < out.size) {
    const ssize_t count =
        ::pread(fd_, out.data + done, static_cast<std::size_t>(out.size - done), offset + done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot read", errno);
    if (count == 0) {
      const std::int64_t end = std::min(size(), offset + done);
      throw FileError(path_, end, std::to_string(offset + out.size - end) + " more bytes",
                      "the end of the file");
    }
    done += count;
  }
}

void InputFile::fail(const char* what, int error) const {
  throw std::filesystem::filesystem_error(what, path_,
                                          std::error_code(error, std::generic_category()));
}

}  // namespace physiofast
