// Compiled once for each instruction set, in a namespace of its name (PHYSIOFAST_ISA).
//
// Nothing from the standard library but integer types may be used here: an inline function compiled
// for AVX-512 could be the copy that the linker keeps for everybody.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.hpp"

namespace physiofast {
namespace PHYSIOFAST_ISA {
namespace {

using std::int16_t;
using std::int32_t;
using std::int64_t;

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kFloats = kBytes / 4;
constexpr int kDoubles = kBytes / 8;

// Vectors of the widest registers, read and written at any alignment.
typedef float Float __attribute__((vector_size(kBytes)));
typedef double Double __attribute__((vector_size(kBytes)));
typedef int16_t Short8 __attribute__((vector_size(16)));
// Tiles of as many rows of doubles as lanes: eight, or four where registers are short.
constexpr int kTile = kFloats < kDoubleLanes ? kFloats : kDoubleLanes;
typedef float TileRow __attribute__((vector_size(kTile * 4)));
typedef TileRow TileRowAny __attribute__((aligned(4), may_alias));
typedef Float FloatAny __attribute__((aligned(4), may_alias));
typedef Double DoubleAny __attribute__((aligned(8), may_alias));
typedef Short8 Short8Any __attribute__((aligned(2), may_alias));

Float load(const float* p) { return *reinterpret_cast<const FloatAny*>(p); }
Double load(const double* p) { return *reinterpret_cast<const DoubleAny*>(p); }
Short8 load(const int16_t* p) { return *reinterpret_cast<const Short8Any*>(p); }
void store(float* p, Float v) { *reinterpret_cast<FloatAny*>(p) = v; }
void store(double* p, Double v) { *reinterpret_cast<DoubleAny*>(p) = v; }
void store(int16_t* p, Short8 v) { *reinterpret_cast<Short8Any*>(p) = v; }

// -- Transposes ---------------------------------------------------------------------------------
//
// Interleaving rows i and i + n/2 of an n x n tile, for all i, log2(n) times over, transposes it.

#if defined(__clang__)
#define INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
template <class V, class M>
V shuffled(V a, V b, M mask) {
  return __builtin_shuffle(a, b, mask);
}
typedef int32_t FloatMask __attribute__((vector_size(kBytes)));
typedef int64_t DoubleMask __attribute__((vector_size(kBytes)));
typedef int16_t ShortMask __attribute__((vector_size(16)));
inline FloatMask mask_for(Float) { return FloatMask{}; }
inline DoubleMask mask_for(Double) { return DoubleMask{}; }
inline ShortMask mask_for(Short8) { return ShortMask{}; }
#if defined(__AVX512F__)
typedef int32_t TileMask __attribute__((vector_size(32)));
inline TileMask mask_for(TileRow) { return TileMask{}; }
#endif
#define INTERLEAVE(a, b, ...) shuffled(a, b, decltype(mask_for(a)){__VA_ARGS__})
#endif

inline void interleave(Short8 a, Short8 b, Short8* low, Short8* high) {
  *low = INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

#if defined(__AVX512F__)
inline void interleave(Float a, Float b, Float* low, Float* high) {
  *low = INTERLEAVE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *high = INTERLEAVE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
inline void interleave(Double a, Double b, Double* low, Double* high) {
  *low = INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
inline void interleave(TileRow a, TileRow b, TileRow* low, TileRow* high) {
  *low = INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif defined(__AVX2__)
inline void interleave(Float a, Float b, Float* low, Float* high) {
  *low = INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
inline void interleave(Double a, Double b, Double* low, Double* high) {
  *low = INTERLEAVE(a, b, 0, 4, 1, 5);
  *high = INTERLEAVE(a, b, 2, 6, 3, 7);
}
#else
inline void interleave(Float a, Float b, Float* low, Float* high) {
  *low = INTERLEAVE(a, b, 0, 4, 1, 5);
  *high = INTERLEAVE(a, b, 2, 6, 3, 7);
}
inline void interleave(Double a, Double b, Double* low, Double* high) {
  *low = INTERLEAVE(a, b, 0, 2);
  *high = INTERLEAVE(a, b, 1, 3);
}
#endif

template <int N, class V>
inline void transpose_registers(V (&rows)[N]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < N; stage *= 2) {
    V next[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      interleave(rows[i], rows[i + N / 2], &next[2 * i], &next[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = next[i];
  }
}

template <class V, int N, class T>
inline void transpose_tile(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  V rows[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) rows[i] = load(in + i * in_stride);
  transpose_registers(rows);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store(out + i * out_stride, rows[i]);
}

template <class T>
void transpose_plainly(const T* in, int64_t rows, int64_t columns, int64_t in_stride, T* out,
                       int64_t out_stride) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

template <class V, int N, class T>
void transpose(const T* in, int64_t rows, int64_t columns, int64_t in_stride, T* out,
               int64_t out_stride) {
  const int64_t whole_rows = rows - rows % N, whole_columns = columns - columns % N;
  for (int64_t c = 0; c < whole_columns; c += N) {
    for (int64_t r = 0; r < whole_rows; r += N) {
      transpose_tile<V, N>(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
  }
  transpose_plainly(in + whole_columns, whole_rows, columns - whole_columns, in_stride,
                    out + whole_columns * out_stride, out_stride);
  transpose_plainly(in + whole_rows * in_stride, rows - whole_rows, columns, in_stride,
                    out + whole_rows, out_stride);
}

void transpose_f32(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out,
                   int64_t out_stride) {
  transpose<Float, kFloats>(in, rows, columns, in_stride, out, out_stride);
}

void transpose_f64(const double* in, int64_t rows, int64_t columns, int64_t in_stride, double* out,
                   int64_t out_stride) {
  transpose<Double, kDoubles>(in, rows, columns, in_stride, out, out_stride);
}

// -- Interleaved samples ------------------------------------------------------------------------

void copy_column(const int16_t* in, int64_t first, int64_t frames, int64_t width, int64_t column,
                 int16_t* out) {
  for (int64_t t = first; t < frames; ++t) out[t] = in[t * width + column];
}

// Columns [column, column + 8) of frames that come in eights.
void deinterleave_eight(const int16_t* in, int64_t frames, int64_t width, int64_t column,
                        int16_t* const* rows) {
  for (int64_t t = 0; t < frames; t += 8) {
    Short8 tile[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) tile[i] = load(in + (t + i) * width + column);
    transpose_registers(tile);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (rows[column + i] != nullptr) store(rows[column + i] + t, tile[i]);
    }
  }
}

void deinterleave_i16(const int16_t* in, int64_t frames, int64_t width, int16_t* const* rows) {
  constexpr int64_t kStretch = 1024;  // frames; stays in the first-level cache for all columns
  const int64_t in_eights = width < 8 ? 0 : frames - frames % 8;
  for (int64_t begin = 0; begin < in_eights; begin += kStretch) {
    const int64_t count = in_eights - begin < kStretch ? in_eights - begin : kStretch;
    for (int64_t column = 0; column < width; column += 8) {
      // The last eight columns end with the frame, so nothing behind it is read.
      const int64_t from = column + 8 <= width ? column : width - 8;
      int16_t* shifted[8];
      bool any = false;
      for (int i = 0; i < 8; ++i) {
        int16_t* row = from + i < column ? nullptr : rows[from + i];
        shifted[i] = row == nullptr ? nullptr : row + begin;
        any = any || row != nullptr;
      }
      if (any) deinterleave_eight(in + begin * width + from, count, width, 0, shifted);
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    if (rows[c] != nullptr) copy_column(in, in_eights, frames, width, c, rows[c]);
  }
}

void widen_f32(const int16_t* in, int64_t count, float* out) {
  for (int64_t t = 0; t < count; ++t) out[t] = static_cast<float>(in[t]);
}

void widen_f64(const int16_t* in, int64_t count, double* out) {
  for (int64_t t = 0; t < count; ++t) out[t] = static_cast<double>(in[t]);
}

void physical_f32(const int16_t* in, int64_t count, double baseline, double step, bool has_invalid,
                  int16_t invalid, float* out) {
  for (int64_t t = 0; t < count; ++t) {
    const auto stored = static_cast<double>(static_cast<int32_t>(in[t]));
    out[t] = static_cast<float>((stored - baseline) * step);
  }
  if (!has_invalid) return;
  for (int64_t t = 0; t < count; ++t) out[t] = in[t] == invalid ? __builtin_nanf("") : out[t];
}

void affine_f32(float* x, int64_t count, float scale, float shift) {
  for (int64_t t = 0; t < count; ++t) x[t] = x[t] * scale + shift;
}

#include "isa_products.hpp"
#include "isa_rows.hpp"
#include "isa_sections.hpp"
#include "isa_values.hpp"

// -- Polyphase filter ---------------------------------------------------------------------------

// One row of lanes: all of them, or a single one. Both add in the same order.
struct Row {
  static constexpr int kWidth = kFloatLanes;
  static constexpr int kVectors = kFloatLanes / kFloats;
  Float v[kVectors];
};
struct One {
  static constexpr int kWidth = 1;
  float v;
};

inline void clear(Row* sum) {
#pragma GCC unroll 4
  for (int i = 0; i < Row::kVectors; ++i) sum->v[i] = Float{};
}
inline void clear(One* sum) { sum->v = 0; }

inline void add_product(Row* sum, const float* x, float tap) {
#pragma GCC unroll 4
  for (int i = 0; i < Row::kVectors; ++i) sum->v[i] += load(x + i * kFloats) * tap;
}
inline void add_product(One* sum, const float* x, float tap) { sum->v += *x * tap; }

inline void add_mirrored(Row* sum, const float* x, const float* y, float tap) {
#pragma GCC unroll 4
  for (int i = 0; i < Row::kVectors; ++i) {
    sum->v[i] += (load(x + i * kFloats) + load(y + i * kFloats)) * tap;
  }
}
inline void add_mirrored(One* sum, const float* x, const float* y, float tap) {
  sum->v += (*x + *y) * tap;
}

inline void put_sum(const Row& a, const Row& b, float* out) {
#pragma GCC unroll 4
  for (int i = 0; i < Row::kVectors; ++i) store(out + i * kFloats, a.v[i] + b.v[i]);
}
inline void put_sum(const One& a, const One& b, float* out) { *out = a.v + b.v; }

template <class R>
inline void plain_output(const float* x, const float* taps, int64_t length, float* out) {
  R even, odd;
  clear(&even);
  clear(&odd);
  int64_t j = 0;
  for (; j + 2 <= length; j += 2) {
    add_product(&even, x + j * R::kWidth, taps[j]);
    add_product(&odd, x + (j + 1) * R::kWidth, taps[j + 1]);
  }
  if (j < length) add_product(&even, x + j * R::kWidth, taps[j]);
  put_sum(even, odd, out);
}

// Symmetric taps of odd length: the centre, then pairs at distances of 1, 1 + spacing, ...
template <class R>
inline void mirrored_output(const float* x, const float* taps, int64_t length, int64_t spacing,
                            float* out) {
  const int64_t centre = length / 2;
  R even, odd;
  clear(&even);
  clear(&odd);
  add_product(&even, x + centre * R::kWidth, taps[centre]);
  int64_t d = 1;
  for (; d + spacing <= centre; d += 2 * spacing) {
    const int64_t e = d + spacing;
    add_mirrored(&even, x + (centre - d) * R::kWidth, x + (centre + d) * R::kWidth,
                 taps[centre + d]);
    add_mirrored(&odd, x + (centre - e) * R::kWidth, x + (centre + e) * R::kWidth,
                 taps[centre + e]);
  }
  if (d <= centre) {
    add_mirrored(&even, x + (centre - d) * R::kWidth, x + (centre + d) * R::kWidth,
                 taps[centre + d]);
  }
  put_sum(even, odd, out);
}

template <class R>
void fir(const PhaseTable& table, const float* in, int64_t base, int64_t first, int64_t count,
         float* out) {
  const int64_t place = first * table.down + table.half;
  int64_t row = place / table.up - (table.length - 1) - base;
  int64_t phase = place % table.up;
  const int64_t row_step = table.down / table.up, phase_step = table.down % table.up;
  for (int64_t t = 0; t < count; ++t) {
    const float* x = in + row * R::kWidth;
    if (table.mirrored != 0) {
      mirrored_output<R>(x, table.taps, table.length, table.mirrored, out + t * R::kWidth);
    } else {
      plain_output<R>(x, table.taps + phase * table.length, table.length, out + t * R::kWidth);
    }
    row += row_step;
    phase += phase_step;
    if (phase >= table.up) {
      phase -= table.up;
      ++row;
    }
  }
}

void fir_lanes(const PhaseTable& table, const float* in, int64_t base, int64_t first, int64_t count,
               float* out) {
  fir<Row>(table, in, base, first, count, out);
}

void fir_scalar(const PhaseTable& table, const float* in, int64_t base, int64_t first,
                int64_t count, float* out) {
  fir<One>(table, in, base, first, count, out);
}

// -- Rounding and ranges ------------------------------------------------------------------------

inline Float smaller(Float a, Float b) { return a < b ? a : b; }
inline Float larger(Float a, Float b) { return a > b ? a : b; }
inline float smaller(float a, float b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }

// To the nearest whole number, half to even: 1.5 * 2^23 leaves no bit below the unit.
template <class V>
inline V rounded_within(V v) {
  v = larger(smaller(v, V{} + 32767.0F), V{} - 32767.0F);
  return (v + 12582912.0F) - 12582912.0F;
}

void quantise(const float* in, int64_t count, float shift, float inverse_lsb, int16_t* out) {
  constexpr int64_t kBlock = 512;
  float rounded[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    int64_t t = 0;
    for (; t + kFloats <= size; t += kFloats) {
      store(rounded + t, rounded_within((load(in + begin + t) - shift) * inverse_lsb));
    }
    for (; t < size; ++t) rounded[t] = rounded_within((in[begin + t] - shift) * inverse_lsb);
    for (t = 0; t < size; ++t) {
      out[begin + t] = static_cast<int16_t>(static_cast<int32_t>(rounded[t]));
    }
  }
}

void range_f32(const float* in, int64_t count, float* low, float* high) {
  Float least[2] = {Float{} + *low, Float{} + *low}, most[2] = {Float{} + *high, Float{} + *high};
  int64_t t = 0;
  for (; t + 2 * kFloats <= count; t += 2 * kFloats) {
    for (int i = 0; i < 2; ++i) {
      const Float x = load(in + t + i * kFloats);
      least[i] = smaller(x, least[i]);
      most[i] = larger(x, most[i]);
    }
  }
  for (; t < count; ++t) {
    *low = smaller(in[t], *low);
    *high = larger(in[t], *high);
  }
  for (int l = 0; l < kFloats; ++l) {
    *low = smaller(smaller(least[0][l], least[1][l]), *low);
    *high = larger(larger(most[0][l], most[1][l]), *high);
  }
}

template <class T>
Extremes extremes_of_valid(const T* in, int64_t count, bool has_previous) {
  Extremes found{in[0], in[0], 0, 0};
  T low = in[0], high = in[0];
  for (int64_t t = 1; t < count; ++t) {
    low = in[t] < low ? in[t] : low;
    high = in[t] > high ? in[t] : high;
  }
  found.low = low;
  found.high = high;
  uint32_t step = 0;
  for (int64_t t = has_previous ? 0 : 1; t < count; ++t) {
    const int32_t a = in[t], b = in[t - 1];
    const uint32_t change = a > b ? static_cast<uint32_t>(a) - static_cast<uint32_t>(b)
                                  : static_cast<uint32_t>(b) - static_cast<uint32_t>(a);
    step = change > step ? change : step;
  }
  found.step = static_cast<int32_t>(step > 2147483647U ? 2147483647U : step);
  return found;
}

template <class T>
Extremes extremes_with_invalid(const T* in, int64_t count, bool has_previous, T invalid) {
  Extremes found{2147483647, -2147483647 - 1, 0, 0};
  int64_t step = 0;
  for (int64_t t = 0; t < count; ++t) {
    if (in[t] == invalid) {
      ++found.num_invalid;
      continue;
    }
    found.low = in[t] < found.low ? in[t] : found.low;
    found.high = in[t] > found.high ? in[t] : found.high;
    if ((t > 0 || has_previous) && in[t - 1] != invalid) {
      const int64_t change = static_cast<int64_t>(in[t]) - in[t - 1];
      step = change > step ? change : -change > step ? -change : step;
    }
  }
  found.step = static_cast<int32_t>(step > 2147483647 ? 2147483647 : step);
  return found;
}

template <class T>
int64_t count_equal(const T* in, int64_t count, T value) {
  int32_t found = 0;
  for (int64_t t = 0; t < count; ++t) found += in[t] == value ? 1 : 0;
  return found;
}

// Stretches are short (seconds), so an int32 counts them.
template <class T>
Extremes extremes(const T* in, int64_t count, bool has_previous, bool has_invalid, T invalid) {
  if (has_invalid) {
    const bool before = has_previous && in[-1] == invalid;
    if (before || count_equal(in, count, invalid) > 0) {
      return extremes_with_invalid(in, count, has_previous, invalid);
    }
  }
  return extremes_of_valid(in, count, has_previous);
}

Extremes extremes_i16(const int16_t* in, int64_t count, bool has_previous, bool has_invalid,
                      int16_t invalid) {
  return extremes(in, count, has_previous, has_invalid, invalid);
}

Extremes extremes_i32(const int32_t* in, int64_t count, bool has_previous, bool has_invalid,
                      int32_t invalid) {
  return extremes(in, count, has_previous, has_invalid, invalid);
}

#include "isa_attention.hpp"

}  // namespace

#define PHYSIOFAST_TEXT_OF(x) #x
#define PHYSIOFAST_TEXT(x) PHYSIOFAST_TEXT_OF(x)

extern const Kernels kKernels;
const Kernels kKernels{PHYSIOFAST_TEXT(PHYSIOFAST_ISA),
                       transpose_f32,
                       transpose_f64,
                       deinterleave_i16,
                       widen_f32,
                       widen_f64,
                       physical_f32,
                       affine_f32,
                       widen_rows,
                       widen_frames,
                       narrow_to_planes,
                       sections,
                       fir_lanes,
                       fir_scalar,
                       quantise,
                       range_f32,
                       dequantise_f32,
                       dequantise_f16,
                       add_f32,
                       accumulate_f32,
                       errors_of<float>,
                       errors_of<int16_t>,
                       stream_bytes,
                       stream_rows<int16_t>,
                       stream_rows<float>,
                       stream_rows<Half>,
                       extremes_i16,
                       extremes_i32,
                       multiply_matrices,
                       attend_window,
                       attend_window_backward};

}  // namespace PHYSIOFAST_ISA
}  // namespace physiofast
