// How the WFDB formats store samples (https://physionet.org/physiotools/wag/signal-5.htm). EDF
// stores format 16, BDF format 24.
#pragma once

#include <cstdint>
#include <cstring>

#include "span.hpp"

namespace physiofast {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian, as is the code");

enum class Format {
  k8 = 8,
  k16 = 16,
  k24 = 24,
  k32 = 32,
  k61 = 61,
  k80 = 80,
  k160 = 160,
  k212 = 212,
  k310 = 310,
  k311 = 311,
};

// Samples come in groups of whole bytes.
struct Grouping {
  std::int64_t samples;
  std::int64_t bytes;
};

// Throws std::invalid_argument for a number that is no format.
Format format_from(int number);

Grouping grouping(Format format);

// Bytes that hold the first `samples` samples. The caller has checked that no group overflows.
std::int64_t num_bytes(Format format, std::int64_t samples);

// True where a stored sample may need more than 16 bits; those formats decode to int32.
inline bool is_wide(Format format) {
  return format == Format::k8 || format == Format::k24 || format == Format::k32;
}

// Formats of whole bytes: one sample from its first byte.
struct Sample16 {
  using Value = std::int16_t;
  static constexpr std::int64_t kBytes = 2;
  static Value load(const std::uint8_t* in) {
    Value value;
    std::memcpy(&value, in, sizeof value);
    return value;
  }
};

struct Sample61 {
  using Value = std::int16_t;
  static constexpr std::int64_t kBytes = 2;
  static Value load(const std::uint8_t* in) {
    std::uint16_t value;
    std::memcpy(&value, in, sizeof value);
    return static_cast<Value>(static_cast<std::uint16_t>((value << 8) | (value >> 8)));
  }
};

struct Sample80 {
  using Value = std::int16_t;
  static constexpr std::int64_t kBytes = 1;
  static Value load(const std::uint8_t* in) { return static_cast<Value>(*in - 128); }
};

struct Sample160 {
  using Value = std::int16_t;
  static constexpr std::int64_t kBytes = 2;
  static Value load(const std::uint8_t* in) {
    std::uint16_t value;
    std::memcpy(&value, in, sizeof value);
    return static_cast<Value>(static_cast<std::uint16_t>(value ^ 0x8000u));
  }
};

// Reads one byte more than the sample has.
struct Sample24 {
  using Value = std::int32_t;
  static constexpr std::int64_t kBytes = 3;
  static Value load(const std::uint8_t* in) {
    std::uint32_t value;
    std::memcpy(&value, in, sizeof value);
    return static_cast<Value>(value << 8) >> 8;
  }
};

struct Sample32 {
  using Value = std::int32_t;
  static constexpr std::int64_t kBytes = 4;
  static Value load(const std::uint8_t* in) {
    Value value;
    std::memcpy(&value, in, sizeof value);
    return value;
  }
};

// Bit-packed formats: `groups` whole groups to samples.
void unpack_groups(Format format, const std::uint8_t* in, std::int64_t groups, std::int16_t* out);

}  // namespace physiofast
