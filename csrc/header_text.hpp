// Text fields of headers: their place, the numbers that they are, and how errors quote them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace physiofast {

// A piece of a header and the byte at which it begins.
struct Field {
  std::string_view text;
  std::int64_t offset;

  Field from(std::size_t start, std::size_t length = std::string_view::npos) const {
    return {text.substr(start, length), offset + static_cast<std::int64_t>(start)};
  }
};

// Without any of `blanks` at either end.
Field stripped(Field field, std::string_view blanks);

// The first 40 of the bytes as Python writes them, b'...', and without its b and quotes.
std::string quoted(std::string_view bytes);
std::string printable(std::string_view bytes);

// As printf's and Python's %g.
std::string general(double value);

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// True for an optional sign and one or more digits.
bool is_whole(std::string_view text);

// Nothing unless `text` is whole and fits.
std::optional<std::int64_t> whole_number(std::string_view text);

// The double nearest to a decimal number with an optional sign, point and exponent, whatever the
// locale; infinite where there is none. Nothing for other texts: no nan, inf or hexadecimals.
std::optional<double> decimal_number(std::string_view text);

}  // namespace physiofast
