// What the fuzz targets of header parsers share: parse under watch, and say what must hold.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "../span.hpp"

namespace fuzz {

// Bytes that have been allocated since the last reset.
class Allocations {
 public:
  static void reset() {
    static const int installed = __sanitizer_install_malloc_and_free_hooks(&count, &ignore);
    if (installed == 0) std::abort();
    bytes_ = 0;
  }
  static std::int64_t bytes() { return bytes_; }

 private:
  static void count(const volatile void*, std::size_t size) {
    bytes_ += static_cast<std::int64_t>(size);
  }
  static void ignore(const volatile void*) {}

  static inline std::int64_t bytes_ = 0;
};

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

// A number with every digit of a double.
inline std::string exact(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

inline bool lies_within(std::string_view part, std::string_view text) {
  return part.empty() ||
         (part.data() >= text.data() && part.data() + part.size() <= text.data() + text.size());
}

// What parse() returns, or nothing and the error as text. Memory and the error's place are checked.
template <class Parse>
auto parse_once(Parse parse, std::int64_t file_size, std::string_view text,
                std::int64_t bytes_per_byte, std::string& error)
    -> std::optional<decltype(parse())> {
  constexpr std::int64_t kError = 16384;  // the texts of an error
  const auto most = bytes_per_byte * static_cast<std::int64_t>(text.size()) + kError;
  Allocations::reset();
  try {
    auto found = parse();
    require(Allocations::bytes() <= most, "memory is bounded by the bytes of the header");
    return found;
  } catch (const physiofast::FileError& e) {
    require(Allocations::bytes() <= most, "memory is bounded by the bytes of the header");
    require(e.byte_offset >= 0 && e.byte_offset <= file_size, "an error lies within the file");
    require(!e.expected.empty() && !e.found.empty() && e.path == "fuzzed", "an error says what");
    error = e.what();
  }
  return std::nullopt;
}

}  // namespace fuzz
