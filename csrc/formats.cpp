#include "formats.hpp"

#include <stdexcept>
#include <string>

namespace physiofast {
namespace {

// The low `kBits` bits as a two's complement number.
template <int kBits>
std::int16_t sign_extend(std::uint32_t value) {
  return static_cast<std::int16_t>(static_cast<std::int32_t>(value << (32 - kBits)) >>
                                   (32 - kBits));
}

void unpack_212(const std::uint8_t* in, std::int64_t groups, std::int16_t* out) {
  for (std::int64_t g = 0; g < groups; ++g, in += 3, out += 2) {
    const std::uint32_t middle = in[1];
    out[0] = sign_extend<12>(in[0] | (middle << 8));
    out[1] = sign_extend<12>(in[2] | ((middle >> 4) << 8));
  }
}

// Two 16-bit words: ten bits of each after the lowest one, and five high bits of each.
void unpack_310(const std::uint8_t* in, std::int64_t groups, std::int16_t* out) {
  for (std::int64_t g = 0; g < groups; ++g, in += 4, out += 3) {
    std::uint32_t word;
    std::memcpy(&word, in, sizeof word);
    out[0] = sign_extend<10>(word >> 1);
    out[1] = sign_extend<10>(word >> 17);
    out[2] = sign_extend<10>(((word >> 11) & 0x1f) | ((word >> 27) << 5));
  }
}

// One 32-bit word; its two highest bits are unused.
void unpack_311(const std::uint8_t* in, std::int64_t groups, std::int16_t* out) {
  for (std::int64_t g = 0; g < groups; ++g, in += 4, out += 3) {
    std::uint32_t word;
    std::memcpy(&word, in, sizeof word);
    out[0] = sign_extend<10>(word);
    out[1] = sign_extend<10>(word >> 10);
    out[2] = sign_extend<10>(word >> 20);
  }
}

}  // namespace

Format format_from(int number) {
  switch (number) {
    case 8:
    case 16:
    case 24:
    case 32:
    case 61:
    case 80:
    case 160:
    case 212:
    case 310:
    case 311:
      return static_cast<Format>(number);
    default:
      throw std::invalid_argument(
          "format: expected one of 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, found " +
          std::to_string(number));
  }
}

Grouping grouping(Format format) {
  switch (format) {
    case Format::k8:
    case Format::k80:
      return {1, 1};
    case Format::k16:
    case Format::k61:
    case Format::k160:
      return {1, 2};
    case Format::k24:
      return {1, 3};
    case Format::k32:
      return {1, 4};
    case Format::k212:
      return {2, 3};
    default:
      return {3, 4};
  }
}

std::int64_t num_bytes(Format format, std::int64_t samples) {
  const Grouping group = grouping(format);
  const std::int64_t rest = samples % group.samples;
  // The second sample of a 310 group ends in the group's last byte, that of a 311 group before.
  const std::int64_t second = format == Format::k310 ? 4 : 3;
  const std::int64_t part = rest == 0 ? 0 : rest == 1 ? 2 : second;
  return samples / group.samples * group.bytes + part;
}

void unpack_groups(Format format, const std::uint8_t* in, std::int64_t groups, std::int16_t* out) {
  if (format == Format::k212) {
    unpack_212(in, groups, out);
  } else if (format == Format::k310) {
    unpack_310(in, groups, out);
  } else {
    unpack_311(in, groups, out);
  }
}

}  // namespace physiofast
