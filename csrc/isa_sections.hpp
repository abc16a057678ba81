// The recursive filter. Part of kernels_isa.cpp.

// a * b + c: one rounding where there is an instruction for it, else two.
#if defined(__AVX512F__)
inline Double multiply_add(Double a, Double b, Double c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
inline Double multiply_add(Double a, Double b, Double c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
inline Double multiply_add(Double a, Double b, Double c) {
  return (Double)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
inline Double multiply_add(Double a, Double b, Double c) { return a * b + c; }
#endif

// One part of the lanes through all sections. In every turn each section takes a step, on what the
// section before it gave in the last turn: the steps of a turn do not wait for each other.
//
// What limits the speed are the arithmetic instructions, of which a section has 5, or 8 without
// fused multiply-add. The first kLight sections have b1 = 0 and b2 = -1, and 3 of them, or 5: with
// both states negated, so that no sign is turned, the bits are those of the others.
template <int kSections, int kLight>
class Pipeline {
 public:
  Pipeline(const SectionBank* banks, const double* gain, SectionState* states, int at)
      : states_(states), at_(at), gain_(load(gain + at)) {
#pragma GCC unroll 8
    for (int s = 0; s < kSections; ++s) {
      b1_[s] = load(banks[s].b1 + at);
      b2_[s] = load(banks[s].b2 + at);
      a1_[s] = load(banks[s].a1 + at);
      a2_[s] = load(banks[s].a2 + at);
      z0_[s] = held(s, load(states[s].z0 + at));
      z1_[s] = held(s, load(states[s].z1 + at));
    }
  }

  ~Pipeline() {
#pragma GCC unroll 8
    for (int s = 0; s < kSections; ++s) {
      store(states_[s].z0 + at_, held(s, z0_[s]));
      store(states_[s].z1 + at_, held(s, z1_[s]));
    }
  }

  void run(double* x, int64_t count, int64_t step) {
    const int64_t stride = step * kDoubleLanes;
    constexpr int64_t kDelay = kSections - 1;
    double* in = x + at_;
    int64_t turn = 0;
    for (; turn < kDelay; ++turn) partial_turn(x, stride, turn, count);
    for (in += kDelay * stride; turn < count; ++turn, in += stride) {
#pragma GCC unroll 8
      for (int s = kSections - 1; s > 0; --s) take_step(s, given_[s - 1]);
      take_step(0, load(in));
      store(in - kDelay * stride, given_[kSections - 1] * gain_);
    }
    for (; turn < count + kDelay; ++turn) partial_turn(x, stride, turn, count);
  }

 private:
  static Double held(int s, Double state) { return s < kLight ? -state : state; }

  void take_step(int s, Double v) {
    if (s < kLight) {
      const Double y = v - z0_[s];
      z0_[s] = multiply_add(a1_[s], y, z1_[s]);
      z1_[s] = multiply_add(a2_[s], y, v);
      given_[s] = y;
    } else {
      const Double y = v + z0_[s];
      z0_[s] = multiply_add(-a1_[s], y, multiply_add(b1_[s], v, z1_[s]));
      z1_[s] = multiply_add(-a2_[s], y, b2_[s] * v);
      given_[s] = y;
    }
  }

  // A turn at the beginning or end, in which only some sections have a row.
  void partial_turn(double* x, int64_t stride, int64_t turn, int64_t count) {
#pragma GCC unroll 8
    for (int s = kSections - 1; s >= 0; --s) {
      const int64_t row = turn - s;
      if (row < 0 || row >= count) continue;
      double* here = x + row * stride + at_;
      take_step(s, s == 0 ? load(here) : given_[s > 0 ? s - 1 : 0]);
      if (s == kSections - 1) store(here, given_[s] * gain_);
    }
  }

  SectionState* states_;
  int at_;
  Double gain_;
  Double b1_[kSections], b2_[kSections], a1_[kSections], a2_[kSections];
  Double z0_[kSections], z1_[kSections], given_[kSections];
};

struct Sections {
  double* x;
  int64_t count, step;
  const SectionBank* banks;
  const double* gain;
  SectionState* states;
};

template <int kSections, int kLight>
void run_pipelines(const Sections& job) {
  for (int at = 0; at < kDoubleLanes; at += kDoubles) {
    Pipeline<kSections, kLight>(job.banks, job.gain, job.states, at)
        .run(job.x, job.count, job.step);
  }
}

template <int kSections>
void run_sections(const Sections& job, int num_light) {
  if (num_light >= kSections) return run_pipelines<kSections, kSections>(job);
  if (num_light == kSections - 1) return run_pipelines<kSections, kSections - 1>(job);
  run_pipelines<kSections, 0>(job);
}

void sections(double* x, int64_t count, int64_t step, int num_sections, int num_light,
              const SectionBank* banks, const double* gain, SectionState* states) {
  const Sections job{x, count, step, banks, gain, states};
  switch (num_sections) {
    case 1:
      return run_sections<1>(job, num_light);
    case 2:
      return run_sections<2>(job, num_light);
    case 3:
      return run_sections<3>(job, num_light);
    case 4:
      return run_sections<4>(job, num_light);
    case 5:
      return run_sections<5>(job, num_light);
    case 6:
      return run_sections<6>(job, num_light);
    default:
      return;
  }
}
