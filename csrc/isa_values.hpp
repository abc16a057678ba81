// Stored samples to values, and rows of them past the caches. Part of kernels_isa.cpp.

// A memory-mapped file's samples may begin at an odd byte.
inline float sample(const int16_t* at) {
  int16_t stored;
  __builtin_memcpy(&stored, at, sizeof(stored));
  return static_cast<float>(stored);
}

void dequantise_f32(const int16_t* __restrict in, int64_t count, float scale, float shift,
                    float* __restrict out) {
  for (int64_t t = 0; t < count; ++t) out[t] = sample(in + t) * scale + shift;
}

#if defined(__F16C__)
inline __m128i eight_halves(const int16_t* in, float scale, float shift) {
  const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
  const __m256 samples = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(stored));
  const __m256 scaled = _mm256_mul_ps(samples, _mm256_set1_ps(scale));
  const __m256 values = _mm256_add_ps(scaled, _mm256_set1_ps(shift));
  return _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#endif

void dequantise_f16(const int16_t* __restrict in, int64_t count, float scale, float shift,
                    Half* __restrict out) {
  int64_t t = 0;
#if defined(__F16C__)
  for (; t + 8 <= count; t += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + t), eight_halves(in + t, scale, shift));
  }
#endif
  for (; t < count; ++t) out[t] = to_half(sample(in + t) * scale + shift);
}

void add_f32(const float* __restrict a, const float* __restrict b, int64_t count,
             float* __restrict out) {
  for (int64_t t = 0; t < count; ++t) out[t] = a[t] + b[t];
}

void accumulate_f32(const float* __restrict in, int64_t count, float* __restrict sum) {
  for (int64_t t = 0; t < count; ++t) sum[t] += in[t];
}

template <class Sample>
void errors_of(const ErrorPiece& piece, const Sample* __restrict samples, int64_t count) {
  const float* __restrict pred = piece.pred;
  const float scale = piece.scale, shift = piece.shift, factor = piece.factor;
  float* __restrict grad = piece.grad;
  float lanes[kErrorLanes];
  for (int l = 0; l < kErrorLanes; ++l) lanes[l] = piece.lanes[l];
  const int64_t whole = count - count % kErrorLanes;
  for (int64_t t = 0; t < whole; t += kErrorLanes) {
    for (int l = 0; l < kErrorLanes; ++l) {
      const float error = pred[t + l] - (static_cast<float>(samples[t + l]) * scale + shift);
      grad[t + l] = error * factor;
      lanes[l] += error * error;
    }
  }
  for (int64_t t = whole; t < count; ++t) {
    const float error = pred[t] - (static_cast<float>(samples[t]) * scale + shift);
    grad[t] = error * factor;
    lanes[t - whole] += error * error;
  }
  for (int l = 0; l < kErrorLanes; ++l) piece.lanes[l] = lanes[l];
}

// A plain store would read the line that it replaces first. A line that is written by one store
// leaves the core at once: 20 MB of rows take 1.7 ms with 64-byte stores where they take 1.9 ms
// with 16-byte ones (a Sapphire Rapids core).
inline void stream_line(void* out, const void* in) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__AVX2__)
  auto* target = static_cast<__m256i*>(out);
  const auto* source = static_cast<const __m256i*>(in);
  for (int i = 0; i < 2; ++i) _mm256_stream_si256(target + i, _mm256_loadu_si256(source + i));
#elif defined(__SSE2__)
  auto* target = static_cast<__m128i*>(out);
  const auto* source = static_cast<const __m128i*>(in);
  for (int i = 0; i < 4; ++i) _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
#else
  __builtin_memcpy(out, in, kLineBytes);
#endif
}

template <class Out>
constexpr int64_t kPerLine = kLineBytes / static_cast<int>(sizeof(Out));

inline void put_line(const StreamRow& row, int64_t t, int16_t* out) {
  stream_line(out, row.in + t);
}

#if defined(__AVX512F__)

inline void put_line(const StreamRow& row, int64_t t, float* out) {
  typedef int16_t Stored __attribute__((vector_size(32)));
  typedef Stored StoredAny __attribute__((aligned(1), may_alias));
  const Stored stored = *reinterpret_cast<const StoredAny*>(row.in + t);
  _mm512_stream_ps(out, __builtin_convertvector(stored, Float) * row.scale + row.shift);
}

#else

inline void put_line(const StreamRow& row, int64_t t, float* out) {
  alignas(kLineBytes) float values[kPerLine<float>];
  dequantise_f32(row.in + t, kPerLine<float>, row.scale, row.shift, values);
  stream_line(out, values);
}

#endif
#if defined(__F16C__)

inline void put_line(const StreamRow& row, int64_t t, Half* out) {
  const auto sixteen = [&](int64_t from) {
    const __m128i low = eight_halves(row.in + from, row.scale, row.shift);
    const __m128i high = eight_halves(row.in + from + 8, row.scale, row.shift);
    return _mm256_set_m128i(high, low);
  };
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out), sixteen(t));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out) + 1, sixteen(t + 16));
}

#else

inline void put_line(const StreamRow& row, int64_t t, Half* out) {
  alignas(kLineBytes) Half values[kPerLine<Half>];
  dequantise_f16(row.in + t, kPerLine<Half>, row.scale, row.shift, values);
  stream_line(out, values);
}

#endif

// kRows = 0: a number known at run time only.
template <class Out, int kRows>
inline void take_turns(const StreamRow* rows, int num_rows, int64_t lines) {
  const int num = kRows == 0 ? num_rows : kRows;
  const int64_t size = lines * kPerLine<Out>;
  for (int64_t t = 0; t < size; t += kPerLine<Out>) {
    for (int r = 0; r < num; ++r) put_line(rows[r], t, static_cast<Out*>(rows[r].out) + t);
  }
}

template <class Out>
void stream_rows(const StreamRow* rows, int num_rows, int64_t lines) {
  if (num_rows == kMostStreamRows) return take_turns<Out, kMostStreamRows>(rows, num_rows, lines);
  take_turns<Out, 0>(rows, num_rows, lines);
}

void stream_bytes(void* out, const void* in, int64_t bytes) {
  auto* target = static_cast<unsigned char*>(out);
  const auto* source = static_cast<const unsigned char*>(in);
  const auto past = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(target) % kLineBytes);
  const int64_t before = (kLineBytes - past) % kLineBytes;
  int64_t at = before < bytes ? before : bytes;
  __builtin_memcpy(target, source, static_cast<unsigned long>(at));
  for (; at + kLineBytes <= bytes; at += kLineBytes) stream_line(target + at, source + at);
  __builtin_memcpy(target + at, source + at, static_cast<unsigned long>(bytes - at));
}
