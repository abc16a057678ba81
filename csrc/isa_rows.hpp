// Samples to rows of lanes for the recursive filter, and back. Part of kernels_isa.cpp.

void widen_rows(const float* in, int64_t count, int at, const double* scale, const double* shift,
                double* out) {
  double a[kDoubleLanes], b[kDoubleLanes];  // copies, which no output can be
  for (int l = 0; l < kDoubleLanes; ++l) {
    a[l] = scale[l];
    b[l] = shift[l];
  }
  in += at;
  for (int64_t t = 0; t < count; ++t, in += kFloatLanes, out += kDoubleLanes) {
    for (int l = 0; l < kDoubleLanes; ++l) out[l] = static_cast<double>(in[l]) * a[l] + b[l];
  }
}

void widen_frames(const int16_t* in, int64_t count, int64_t width, int lanes, const double* scale,
                  const double* shift, double* out) {
  double a[kDoubleLanes], b[kDoubleLanes];
  for (int l = 0; l < kDoubleLanes; ++l) {
    a[l] = scale[l];
    b[l] = shift[l];
  }
  // Rows whose kDoubleLanes samples from their first lane on are all there.
  const int64_t beyond = (kDoubleLanes - lanes + width - 1) / width;
  int64_t t = 0;
  for (; t < count - beyond; ++t, in += width, out += kDoubleLanes) {
    for (int l = 0; l < kDoubleLanes; ++l) out[l] = static_cast<double>(in[l]) * a[l] + b[l];
  }
  for (; t < count; ++t, in += width, out += kDoubleLanes) {
    for (int l = 0; l < kDoubleLanes; ++l)
      out[l] = l < lanes ? static_cast<double>(in[l]) * a[l] + b[l] : b[l];
  }
}

#if defined(__AVX512F__)
inline TileRow narrow(const double* in) { return __builtin_convertvector(load(in), TileRow); }
#elif defined(__AVX2__)
inline TileRow narrow(const double* in) {
  return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(in + 4)),
                         _mm256_cvtpd_ps(_mm256_loadu_pd(in)));
}
#elif defined(__SSE2__)
inline TileRow narrow(const double* in) {
  return _mm_movelh_ps(_mm_cvtpd_ps(_mm_loadu_pd(in)), _mm_cvtpd_ps(_mm_loadu_pd(in + 2)));
}
#else
inline TileRow narrow(const double* in) {
  TileRow row{};
  for (int l = 0; l < kTile; ++l) row[l] = static_cast<float>(in[l]);
  return row;
}
#endif

// Adding 0 makes 0 of -0, whose sign would tell one form of a section from another.
void narrow_to_planes(const double* in, int64_t count, int lanes, float* const* planes) {
  const int64_t whole = count - count % kTile;
  for (int at = 0; at < lanes; at += kTile) {
    for (int64_t t = 0; t < whole; t += kTile) {
      TileRow tile[kTile];
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) tile[i] = narrow(in + (t + i) * kDoubleLanes + at) + 0.0F;
      transpose_registers(tile);
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) {
        if (at + i < lanes) *reinterpret_cast<TileRowAny*>(planes[at + i] + t) = tile[i];
      }
    }
  }
  for (int l = 0; l < lanes; ++l) {
    for (int64_t t = whole; t < count; ++t) {
      planes[l][t] = static_cast<float>(in[t * kDoubleLanes + l]) + 0.0F;
    }
  }
}
