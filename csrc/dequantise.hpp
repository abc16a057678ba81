// Stored integers to values.
#pragma once

#include <cstdint>

#include "half.hpp"

namespace physiofast {

// out[t] = in[t] * scale + shift in float32, with a rounding after each of the two, and one more to
// float16. The bits do not depend on the instruction set.
void dequantise(const std::int16_t* in, std::int64_t count, float scale, float shift, float* out);
void dequantise(const std::int16_t* in, std::int64_t count, float scale, float shift, Half* out);

}  // namespace physiofast
