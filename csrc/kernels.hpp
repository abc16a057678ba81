// The loops that are compiled once for each instruction set, and the choice among them at run time.
//
// Sums run in one stated order, that of lanes included, and compilers contract no product and sum
// into a fused multiply-add, so all forms give the same bits. Exceptions are written out: the
// recursive filter, products of matrices and attention use that instruction where there is one.
// SSE2 has none, and its results differ by the roundings saved.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention_window.hpp"
#include "half.hpp"

namespace physiofast {

constexpr int kFloatLanes = 16;  // rows of the polyphase filter
constexpr int kDoubleLanes = 8;  // channels of the recursive filter
constexpr int kMaxSections = 6;  // second-order sections that one pass can hold
constexpr int kMostStreamRows = 12;
constexpr int kLineBytes = 64;
// Output of this size has left the caches before it is read: it is written past them, which saves
// reading the lines that it replaces.
constexpr std::int64_t kStreamBytes = 8 << 20;

// Second-order sections in transposed direct form II with b0 = 1, a lane for each of kDoubleLanes
// channels; what the gains of a cascade come to is multiplied at its end.
struct alignas(64) SectionBank {
  double b1[kDoubleLanes], b2[kDoubleLanes];
  double a1[kDoubleLanes], a2[kDoubleLanes];
};
struct alignas(64) SectionState {
  double z0[kDoubleLanes], z1[kDoubleLanes];
};

// A polyphase filter laid out for the kernels. Output u reads inputs from
// floor((u * down + half) / up) - (length - 1) on, with the taps of phase (u * down + half) mod up.
struct PhaseTable {
  std::int64_t up, down, half;
  std::int64_t length;    // taps of one phase
  const float* taps;      // [up, length], in the order of the inputs
  std::int64_t mirrored;  // 0: plain; 1 or 2: up is 1 and taps are symmetric, with that spacing
};

// Minimum, maximum, largest step and number of invalid samples of a stretch.
struct Extremes {
  std::int32_t low, high;
  std::int32_t step;
  std::int64_t num_invalid;
};

// Samples that become the lines from `out` on, where one begins.
struct StreamRow {
  void* out;
  const std::int16_t* in;
  float scale, shift;
};

// What predictions of some samples are compared by. Lane t % kErrorLanes sums the square of sample
// t, so that sums are the same in any form of the kernels.
constexpr int kErrorLanes = 16;
struct ErrorPiece {
  const float* pred;
  float scale, shift, factor;
  float* grad;
  float* lanes;  // [kErrorLanes]
};

// c [rows, columns] of a [rows, depth] and b [depth, columns], columns in sixteens: element (i, k)
// of a is at a[i * row_a + k * column_a], rows of the others are so far apart. Each sum runs in
// ascending order of depth.
struct MatrixProduct {
  const float* a;
  std::int64_t row_a, column_a;
  const float* b;
  std::int64_t stride_b;
  std::int64_t rows, columns, depth;
  float* c;
  std::int64_t stride_c;
};

struct Kernels {
  const char* name;

  // out[c * out_stride + r] = in[r * in_stride + c]
  void (*transpose_f32)(const float* in, std::int64_t rows, std::int64_t columns,
                        std::int64_t in_stride, float* out, std::int64_t out_stride);
  void (*transpose_f64)(const double* in, std::int64_t rows, std::int64_t columns,
                        std::int64_t in_stride, double* out, std::int64_t out_stride);

  // rows[c][t] = in[t * width + c] for every c of [0, width) whose rows[c] is not null.
  void (*deinterleave_i16)(const std::int16_t* in, std::int64_t frames, std::int64_t width,
                           std::int16_t* const* rows);

  void (*widen_f32)(const std::int16_t* in, std::int64_t count, float* out);
  void (*widen_f64)(const std::int16_t* in, std::int64_t count, double* out);
  // out[t] = (in[t] - baseline) * step, NaN where in[t] is `invalid` (if has_invalid).
  void (*physical_f32)(const std::int16_t* in, std::int64_t count, double baseline, double step,
                       bool has_invalid, std::int16_t invalid, float* out);
  // x[t] = x[t] * scale + shift
  void (*affine_f32)(float* x, std::int64_t count, float scale, float shift);

  // Rows of kFloatLanes to rows of kDoubleLanes that are their first or second half, `at` 0 or
  // kDoubleLanes: out[t][l] = in[t][at + l] * scale[l] + shift[l].
  void (*widen_rows)(const float* in, std::int64_t count, int at, const double* scale,
                     const double* shift, double* out);
  // The same of frames: out[t][l] = in[t * width + l] * scale[l] + shift[l]. Lanes from `lanes` on
  // have scale 0, and no sample behind the last one of the last frame is read.
  void (*widen_frames)(const std::int16_t* in, std::int64_t count, std::int64_t width, int lanes,
                       const double* scale, const double* shift, double* out);
  // planes[l][t] = in[t][l] for every l < lanes; 0 is never negative.
  void (*narrow_to_planes)(const double* in, std::int64_t count, int lanes, float* const* planes);

  // Filters `count` rows of kDoubleLanes in place, rows `step` (1 or -1) apart, through up to
  // kMaxSections sections, and multiplies them by gain [kDoubleLanes]. The first `num_light`
  // sections have b1 = 0 and b2 = -1 in every lane that matters.
  void (*sections)(double* x, std::int64_t count, std::int64_t step, int num_sections,
                   int num_light, const SectionBank* banks, const double* gain,
                   SectionState* states);

  // Polyphase filter over lanes: out[t * kFloatLanes + l] is output first + t of lane l, whose
  // input i lies at in[(i - base) * kFloatLanes + l]. With `fir_scalar`, the same for one lane.
  void (*fir_lanes)(const PhaseTable& table, const float* in, std::int64_t base, std::int64_t first,
                    std::int64_t count, float* out);
  void (*fir_scalar)(const PhaseTable& table, const float* in, std::int64_t base,
                     std::int64_t first, std::int64_t count, float* out);

  // out[t] = round half to even of (in[t] - shift) * inverse_lsb, held within +-32767.
  void (*quantise)(const float* in, std::int64_t count, float shift, float inverse_lsb,
                   std::int16_t* out);
  // Widens [*low, *high] to hold every in[t].
  void (*range_f32)(const float* in, std::int64_t count, float* low, float* high);

  // out[t] = in[t] * scale + shift, in float32.
  void (*dequantise_f32)(const std::int16_t* in, std::int64_t count, float scale, float shift,
                         float* out);
  void (*dequantise_f16)(const std::int16_t* in, std::int64_t count, float scale, float shift,
                         Half* out);
  // out[t] = a[t] + b[t]; sum[t] += in[t].
  void (*add_f32)(const float* a, const float* b, std::int64_t count, float* out);
  void (*accumulate_f32)(const float* in, std::int64_t count, float* sum);
  // Errors of predictions of sample * scale + shift, times `factor`, and their squares into lanes.
  void (*errors_f32)(const ErrorPiece& piece, const float* samples, std::int64_t count);
  void (*errors_i16)(const ErrorPiece& piece, const std::int16_t* samples, std::int64_t count);
  // Copies past the caches. Other threads see this after stream_end().
  void (*stream_bytes)(void* out, const void* in, std::int64_t bytes);
  // Dequantised, or as stored, `lines` cache lines of up to kMostStreamRows rows in turns, written
  // past the caches. Other threads see them after stream_end().
  void (*stream_i16)(const StreamRow* rows, int num_rows, std::int64_t lines);
  void (*stream_f32)(const StreamRow* rows, int num_rows, std::int64_t lines);
  void (*stream_f16)(const StreamRow* rows, int num_rows, std::int64_t lines);

  // Of samples that differ from `invalid` (if has_invalid); steps are between neighbours that both
  // do. `in[-1]` is read as the neighbour of in[0] when has_previous.
  Extremes (*extremes_i16)(const std::int16_t* in, std::int64_t count, bool has_previous,
                           bool has_invalid, std::int16_t invalid);
  Extremes (*extremes_i32)(const std::int32_t* in, std::int64_t count, bool has_previous,
                           bool has_invalid, std::int32_t invalid);

  // The product is added to `c` or takes its place.
  void (*multiply)(const MatrixProduct& job, bool adds);

  // `attend` and `attend_backward` (attention.hpp) for one head of one window, with as much memory
  // as attention_scratch() says.
  void (*attend)(const AttentionWindow& window, float* scratch);
  void (*attend_backward)(const AttentionWindow& window, float* scratch);
};

// The kernels in use: the best that this processor has, until select_kernels chooses.
const Kernels& kernels();

// Ends what a thread has written past the caches.
void stream_end();

// Names of the forms that this processor can run, the best one last.
std::vector<std::string> kernel_names();

// Chooses a form by name for the whole process; throws std::invalid_argument for a name that is
// not in kernel_names(). For tests, benchmarks and fault-finding.
void select_kernels(const std::string& name);

}  // namespace physiofast
