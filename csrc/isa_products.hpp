// Products of small matrices. Part of kernels_isa.cpp.

// x in every lane. A sum with zeros would have to be computed, for the sake of -0.
inline Float everywhere(float x) { return x - Float{}; }

#if defined(__AVX512F__)
inline Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
constexpr int kGemmRows = 8;
#elif defined(__AVX2__)
inline Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
constexpr int kGemmRows = 6;  // of 16 registers 12 hold sums, as two vectors of each row
#elif defined(__aarch64__)
inline Float multiply_add(Float a, Float b, Float c) {
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
constexpr int kGemmRows = 8;
#else
inline Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
constexpr int kGemmRows = 4;
#endif

// A matrix whose element (i, k) is at data[i * row + k * column].
struct Left {
  const float* data;
  int64_t row, column;
};

// kRows rows and kVectors registers of c (+)= a b.
template <int kRows, int kVectors, bool kAdd>
inline void multiply_tile(Left a, const float* b, int64_t stride_b, int64_t depth, float* c,
                          int64_t stride_c) {
  Float sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
      sum[i][n] = kAdd ? load(c + i * stride_c + n * kFloats) : Float{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Float right[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) right[n] = load(b + k * stride_b + n * kFloats);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Float left = everywhere(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sum[i][n] = multiply_add(left, right[n], sum[i][n]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) store(c + i * stride_c + n * kFloats, sum[i][n]);
  }
}

// kRows rows of c (+)= a b.
template <int kRows, bool kAdd>
void multiply_rows(Left a, const float* b, int64_t stride_b, int64_t columns, int64_t depth,
                   float* c, int64_t stride_c) {
  int64_t n = 0;
  for (; n + 2 * kFloats <= columns; n += 2 * kFloats) {
    multiply_tile<kRows, 2, kAdd>(a, b + n, stride_b, depth, c + n, stride_c);
  }
  if (n < columns) multiply_tile<kRows, 1, kAdd>(a, b + n, stride_b, depth, c + n, stride_c);
}

// c [rows, columns] (+)= a [rows, depth] b [depth, columns], columns in sixteens. Sums run in
// ascending order of depth.
template <bool kAdd>
void multiply(Left a, const float* b, int64_t stride_b, int64_t rows, int64_t columns,
              int64_t depth, float* c, int64_t stride_c) {
  const auto from = [&](int64_t row) { return Left{a.data + row * a.row, a.row, a.column}; };
  int64_t i = 0;
  for (; i + kGemmRows <= rows; i += kGemmRows) {
    multiply_rows<kGemmRows, kAdd>(from(i), b, stride_b, columns, depth, c + i * stride_c,
                                   stride_c);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_rows<2, kAdd>(from(i), b, stride_b, columns, depth, c + i * stride_c, stride_c);
  }
  if (i < rows) {
    multiply_rows<1, kAdd>(from(i), b, stride_b, columns, depth, c + i * stride_c, stride_c);
  }
}

void multiply_matrices(const MatrixProduct& job, bool adds) {
  const Left a{job.a, job.row_a, job.column_a};
  if (adds) {
    multiply<true>(a, job.b, job.stride_b, job.rows, job.columns, job.depth, job.c, job.stride_c);
  } else {
    multiply<false>(a, job.b, job.stride_b, job.rows, job.columns, job.depth, job.c, job.stride_c);
  }
}
