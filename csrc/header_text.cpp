#include "header_text.hpp"

#include <locale.h>
#include <stdlib.h>

#include <charconv>
#include <cstdio>

namespace physiofast {
namespace {

constexpr std::size_t kMostQuoted = 40;
constexpr std::string_view kMore = "...";

// The quote that Python takes.
char quote_of(std::string_view bytes) {
  const auto has = [&](char c) { return bytes.find(c) != std::string_view::npos; };
  return has('\'') && !has('"') ? '"' : '\'';
}

std::string escaped(char c, char quote) {
  if (c == '\t') return "\\t";
  if (c == '\n') return "\\n";
  if (c == '\r') return "\\r";
  if (c == '\\' || c == quote) return {'\\', c};
  const auto byte = static_cast<unsigned char>(c);
  if (byte >= 0x20 && byte < 0x7f) return {c};
  char code[5];
  std::snprintf(code, sizeof code, "\\x%02x", byte);
  return code;
}

// Digits from `at` on; returns where they end.
std::size_t skip_digits(std::string_view text, std::size_t at) {
  while (at < text.size() && is_digit(text[at])) ++at;
  return at;
}

std::size_t skip_sign(std::string_view text, std::size_t at) {
  return at < text.size() && (text[at] == '+' || text[at] == '-') ? at + 1 : at;
}

bool is_decimal(std::string_view text) {
  const std::size_t first = skip_sign(text, 0);
  std::size_t at = skip_digits(text, first), digits = at - first;
  if (at < text.size() && text[at] == '.') {
    const std::size_t fraction = at + 1;
    at = skip_digits(text, fraction);
    digits += at - fraction;
  }
  if (digits == 0) return false;
  if (at == text.size()) return true;
  if (text[at] != 'e' && text[at] != 'E') return false;
  return is_whole(text.substr(at + 1));
}

}  // namespace

Field stripped(Field field, std::string_view blanks) {
  const std::size_t first = field.text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return field.from(field.text.size());
  return field.from(first, field.text.find_last_not_of(blanks) - first + 1);
}

std::string quoted(std::string_view bytes) {
  const char quote = quote_of(bytes.substr(0, kMostQuoted));
  std::string out = printable(bytes);
  const std::size_t end = out.size() - (bytes.size() > kMostQuoted ? kMore.size() : 0);
  return std::string{'b', quote} + out.insert(end, 1, quote);
}

std::string printable(std::string_view bytes) {
  const std::string_view shown = bytes.substr(0, kMostQuoted);
  const char quote = quote_of(shown);
  std::string out;
  for (const char c : shown) out += escaped(c, quote);
  if (shown.size() < bytes.size()) out += kMore;
  return out;
}

std::string general(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

bool is_whole(std::string_view text) {
  const std::size_t first = skip_sign(text, 0);
  return first < text.size() && skip_digits(text, first) == text.size();
}

std::optional<std::int64_t> whole_number(std::string_view text) {
  if (!is_whole(text)) return std::nullopt;
  if (text[0] == '+') text.remove_prefix(1);
  std::int64_t value = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc()) return std::nullopt;
  return value;
}

std::optional<double> decimal_number(std::string_view text) {
  if (!is_decimal(text)) return std::nullopt;
  static const locale_t plain = ::newlocale(LC_ALL_MASK, "C", nullptr);
  return ::strtod_l(std::string(text).c_str(), nullptr, plain);
}

}  // namespace physiofast
