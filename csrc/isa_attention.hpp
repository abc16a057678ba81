// Attention of one head of one window. Part of kernels_isa.cpp.
//
// Everything that is multiplied lies in scratch memory with rows of whole vectors: keys and values
// both as they are and transposed, queries and gradients a block of rows at a time. Sums over
// features, keys and queries run in ascending order, sums over lanes in one order, so that the
// width of a register shows in no bit.

typedef std::uint32_t FloatBits __attribute__((vector_size(kBytes)));

constexpr float kForbidden = -2e38F;  // a logit whose weight is 0 beside any other

// -- Rows of sixteen lanes --------------------------------------------------------------------

struct Lanes {
  static constexpr int kParts = kFloatLanes / kFloats;
  Float part[kParts];
};

inline Lanes all_lanes(float x) {
  Lanes found;
  for (int i = 0; i < Lanes::kParts; ++i) found.part[i] = everywhere(x);
  return found;
}

// Lanes of the rows that are worked on together, merged over the lanes of each at the end: one row
// alone would wait for every step of it.
struct LanesOfRows {
  static constexpr int64_t kRows = 16;  // of a block, which stay in the first cache
  float lane[kRows * kFloatLanes];

  void put(int64_t row, const Lanes& x) {
    for (int i = 0; i < Lanes::kParts; ++i)
      store(lane + row * kFloatLanes + i * kFloats, x.part[i]);
  }

  // Halves of lanes are merged with one another until one is left. found [kRows].
  template <class Merge>
  void merged(Merge merge, float* found) const {
    float column[kFloatLanes * kRows];
    transpose<Float, kFloats>(lane, kRows, kFloatLanes, kFloatLanes, column, kRows);
    for (int half = kFloatLanes / 2; half > 0; half /= 2) {
      for (int n = 0; n < half * kRows; n += kFloats) {
        store(column + n, merge(load(column + n), load(column + half * kRows + n)));
      }
    }
    for (int i = 0; i < kRows; ++i) found[i] = column[i];
  }
};

inline Float sum_of(Float a, Float b) { return a + b; }
inline Float larger_of(Float a, Float b) { return larger(a, b); }

inline Float magnitude(Float x) { return (Float)((FloatBits)x & 0x7fffffffU); }

// e to the x for x up to 0, within 2 units in the last place; 0 below -87, where float32 ends.
inline Float exponential(Float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: what is added to it is rounded to a whole
  const Float held = larger(everywhere(-87.0F), x);
  const Float shifted = multiply_add(held, everywhere(1.44269504F), everywhere(kMagic));
  const Float whole = shifted - kMagic;
  Float r = multiply_add(whole, everywhere(-0.693359375F), held);
  r = multiply_add(whole, everywhere(2.12194440e-4F), r);
  Float p = everywhere(1.9875691500e-4F);
  p = multiply_add(p, r, everywhere(1.3981999507e-3F));
  p = multiply_add(p, r, everywhere(8.3334519073e-3F));
  p = multiply_add(p, r, everywhere(4.1665795894e-2F));
  p = multiply_add(p, r, everywhere(1.6666665459e-1F));
  p = multiply_add(p, r, everywhere(5.0000001201e-1F));
  p = multiply_add(p, r * r, r + 1.0F);
  // The whole number is in the low bits of `shifted`; the others are shifted out.
  const FloatBits power = ((FloatBits)shifted << 23) + (127U << 23);
  return x < -87.0F ? Float{} : p * (Float)power;
}

// -- One window -------------------------------------------------------------------------------

class AttentionHead {
 public:
  AttentionHead(const AttentionWindow& window, float* scratch)
      : w_(window),
        keys_(round_up(window.length_k, kFloatLanes)),
        features_(round_up(window.width, kFloatLanes)),
        block_(block_of(window.length_q)),
        free_(scratch) {}

  void forward() {
    float* key_columns = transposed(w_.k, w_.stride_k);
    float* values = copied(w_.v, w_.stride_v);
    prepare_pairs();
    float* query = take(kQueryRows * features_);
    float* weights = take(kQueryRows * keys_);
    float* sums = take(kQueryRows * features_);
    for (int64_t first = 0; first < w_.length_q; first += block_) {
      const int64_t rows = rows_from(first, w_.length_q, block_),
                    padded = round_up(rows, kGemmRows);
      copy_rows(w_.q + first * w_.stride_q, w_.stride_q, rows, padded, w_.scale, query);
      multiply<false>({query, features_, 1}, key_columns, keys_, padded, keys_, features_, weights,
                      keys_);
      float share[kQueryRows];
      for (int64_t i = 0; i < rows; i += LanesOfRows::kRows) {
        soften(first + i, rows_from(i, rows, LanesOfRows::kRows), weights + i * keys_, share + i);
      }
      multiply<false>({weights, keys_, 1}, values, features_, padded, features_, w_.length_k, sums,
                      features_);
      for (int64_t i = 0; i < rows; ++i) {
        put_row(sums + i * features_, share[i], w_.out + (first + i) * w_.stride_out);
      }
    }
  }

  void backward() {
    float* key_columns = transposed(w_.k, w_.stride_k);
    float* value_columns = transposed(w_.v, w_.stride_v);
    float* keys = copied(w_.k, w_.stride_k);
    float* dkeys = zeros(keys_ * features_);
    float* dvalues = zeros(keys_ * features_);
    prepare_pairs();
    float* by_kind = zeros((w_.kinds + 1) * keys_);
    float* query = take(kQueryRows * features_);
    float* grad = take(kQueryRows * features_);
    float* sums = take(kQueryRows * features_);
    float* weights = take(kQueryRows * keys_);
    float* slopes = take(kQueryRows * keys_);
    double ddecay = 0;  // of many terms that cancel
    for (int64_t first = 0; first < w_.length_q; first += block_) {
      const int64_t rows = rows_from(first, w_.length_q, block_),
                    padded = round_up(rows, kGemmRows);
      copy_rows(w_.q + first * w_.stride_q, w_.stride_q, rows, padded, w_.scale, query);
      copy_rows(w_.grad + first * w_.stride_grad, w_.stride_grad, rows, padded, 1.0F, grad);
      multiply<false>({query, features_, 1}, key_columns, keys_, padded, keys_, features_, weights,
                      keys_);
      multiply<false>({grad, features_, 1}, value_columns, keys_, padded, keys_, features_, slopes,
                      keys_);
      for (int64_t i = 0; i < rows; i += LanesOfRows::kRows) {
        find_slopes(first + i, rows_from(i, rows, LanesOfRows::kRows), weights + i * keys_,
                    slopes + i * keys_, by_kind, &ddecay);
      }
      multiply<false>({slopes, keys_, 1}, keys, features_, padded, features_, w_.length_k, sums,
                      features_);
      for (int64_t i = 0; i < rows; ++i) {
        put_row(sums + i * features_, w_.scale, w_.dq + (first + i) * w_.stride_dq);
      }
      multiply<true>({weights, 1, keys_}, grad, features_, keys_, features_, rows, dvalues,
                     features_);
      multiply<true>({slopes, 1, keys_}, query, features_, keys_, features_, rows, dkeys,
                     features_);
    }
    for (int64_t j = 0; j < w_.length_k; ++j) {
      put_row(dkeys + j * features_, 1.0F, w_.dk + j * w_.stride_dk);
      put_row(dvalues + j * features_, 1.0F, w_.dv + j * w_.stride_dv);
    }
    put_bias(by_kind);
    *w_.ddecay = static_cast<float>(-ddecay);
  }

 private:
  float* take(int64_t count) {
    float* found = free_;
    free_ += count;
    return found;
  }
  float* zeros(int64_t count) {
    float* found = take(count);
    for (int64_t i = 0; i < count; ++i) found[i] = 0;
    return found;
  }

  // Queries that are worked on together: up to kQueryRows, in blocks of about one size.
  static int64_t block_of(int64_t queries) {
    const int64_t blocks = round_up(queries, kQueryRows) / kQueryRows;
    return blocks == 0 ? kQueryRows : round_up((queries + blocks - 1) / blocks, kGemmRows);
  }

  // Of `all` rows those from one on, up to so many.
  static int64_t rows_from(int64_t first, int64_t all, int64_t most) {
    return all - first < most ? all - first : most;
  }

  // Rows of the window, `scale` times, with zeros up to whole vectors and `padded` rows.
  void copy_rows(const float* in, int64_t stride, int64_t rows, int64_t padded, float scale,
                 float* out) const {
    for (int64_t i = 0; i < padded; ++i, out += features_) {
      const int64_t width = i < rows ? w_.width : 0;
      for (int64_t d = 0; d < width; ++d) out[d] = in[i * stride + d] * scale;
      for (int64_t d = width; d < features_; ++d) out[d] = 0;
    }
  }
  float* copied(const float* in, int64_t stride) {
    float* found = take(keys_ * features_);
    copy_rows(in, stride, w_.length_k, w_.length_k, 1.0F, found);
    return found;
  }

  // [features, keys] of a window's keys or values; zeros where there is none.
  float* transposed(const float* in, int64_t stride) {
    float* found = take(features_ * keys_);
    transpose<Float, kFloats>(in, w_.length_k, w_.width, stride, found, keys_);
    for (int64_t d = 0; d < features_; ++d) {
      const int64_t from = d < w_.width ? w_.length_k : 0;
      for (int64_t j = from; j < keys_; ++j) found[d * keys_ + j] = 0;
    }
    return found;
  }

  // Biases to every key, for each modality of a query and for one that has none; -inf behind the
  // last key. And the keys' seconds.
  void prepare_pairs() {
    bias_ = take((w_.kinds + 1) * keys_);
    seconds_ = zeros(keys_);
    for (int64_t j = 0; j < w_.length_k; ++j) seconds_[j] = w_.seconds_k[j];
    for (int64_t m = 0; m <= w_.kinds; ++m) {
      float* row = bias_ + m * keys_;
      for (int64_t j = 0; j < keys_; ++j) {
        row[j] = j < w_.length_k ? pair(m, w_.modality_k[j]) : -__builtin_inff();
      }
    }
  }
  float pair(int64_t m, int32_t other) const {
    if (m == w_.kinds || other < 0 || other >= w_.kinds) return 0;
    const float bias = w_.bias[m * w_.kinds + other];
    const bool may = w_.allowed[m * w_.kinds + other] != 0 && !(bias < kForbidden);
    return may ? bias : kForbidden;
  }
  int64_t kind_of(int64_t query) const {
    const int32_t m = w_.modality_q[query];
    return m < 0 || m >= w_.kinds ? w_.kinds : m;
  }

  // What the logits of one query have in common. Kept in registers: a store may change a member.
  struct Query {
    const float *bias, *seconds;
    Float second, growth;  // minus the decay

    Float apart(int64_t j) const { return magnitude(second - load(seconds + j)); }
    Float logit(Float product, int64_t j) const {
      return multiply_add(growth, apart(j), product + load(bias + j));
    }
  };
  Query query_of(int64_t query) const {
    const float* bias = bias_ + kind_of(query) * keys_;
    return {bias, seconds_, everywhere(w_.seconds_q[query]), everywhere(-w_.decay)};
  }

  // Products of up to LanesOfRows::kRows queries become weights, up to a factor for each; 0 where
  // no key is allowed. A step runs through all rows before the next one begins, which needs all of
  // a row.
  void soften(int64_t first, int64_t rows, float* weights, float* share) const {
    LanesOfRows lanes{};
    float largest[LanesOfRows::kRows], total[LanesOfRows::kRows];
    for (int64_t i = 0; i < rows; ++i) lanes.put(i, find_logits(first + i, weights + i * keys_));
    lanes.merged(larger_of, largest);
    for (int64_t i = 0; i < rows; ++i) lanes.put(i, find_weights(weights + i * keys_, largest[i]));
    lanes.merged(sum_of, total);
    for (int64_t i = 0; i < rows; ++i) {
      const bool has_weight = largest[i] > kForbidden / 2;
      if (has_weight) w_.found_lse[first + i] = largest[i] + __builtin_logf(total[i]);
      share[i] = has_weight ? 1 / total[i] : none_or_nan(first + i, weights + i * keys_);
    }
  }

  // Products become logits; the largest of each lane.
  Lanes find_logits(int64_t query, float* row) const {
    const Query q = query_of(query);
    const int64_t keys = keys_;
    Lanes most = all_lanes(-__builtin_inff());
    for (int64_t j = 0; j < keys; j += kFloatLanes) {
      for (int i = 0; i < Lanes::kParts; ++i) {
        const int64_t at = j + i * kFloats;
        const Float x = q.logit(load(row + at), at);
        store(row + at, x);
        most.part[i] = larger(x, most.part[i]);
      }
    }
    return most;
  }

  // Logits become weights; the sum of each lane.
  Lanes find_weights(float* row, float largest) const {
    const int64_t keys = keys_;
    Lanes sum = all_lanes(0);
    for (int64_t j = 0; j < keys; j += kFloatLanes) {
      for (int i = 0; i < Lanes::kParts; ++i) {
        const Float weight = exponential(load(row + j + i * kFloats) - largest);
        store(row + j + i * kFloats, weight);
        sum.part[i] += weight;
      }
    }
    return sum;
  }

  // Of a row without any weight: because no key is allowed, or nothing in it is a number.
  float none_or_nan(int64_t query, float* row) const {
    bool is_nan = false;
    for (int64_t j = 0; j < w_.length_k; ++j) {
      is_nan = is_nan || row[j] != row[j];
      row[j] = 0;
    }
    w_.found_lse[query] = is_nan ? __builtin_nanf("") : -__builtin_inff();
    return is_nan ? __builtin_nanf("") : 0;
  }

  // Products of up to LanesOfRows::kRows queries become weights, and the gradients of weights
  // those of logits.
  void find_slopes(int64_t first, int64_t rows, float* weights, float* slopes, float* by_kind,
                   double* ddecay) const {
    LanesOfRows lanes{};
    float mean[LanesOfRows::kRows], distance[LanesOfRows::kRows];
    for (int64_t i = 0; i < rows; ++i) {
      lanes.put(i, find_weights_again(first + i, weights + i * keys_, slopes + i * keys_));
    }
    lanes.merged(sum_of, mean);
    for (int64_t i = 0; i < rows; ++i) {
      float* total = by_kind + kind_of(first + i) * keys_;
      lanes.put(i, slope_row(first + i, mean[i], weights + i * keys_, slopes + i * keys_, total));
    }
    lanes.merged(sum_of, distance);
    for (int64_t i = 0; i < rows; ++i) *ddecay += static_cast<double>(distance[i]);
  }

  // Products become weights, by the logarithm of their sum that `soften` found; for each lane the
  // sum of their products with their gradients.
  Lanes find_weights_again(int64_t query, float* row, float* grads) const {
    const Query q = query_of(query);
    const int64_t keys = keys_;
    const float lse = w_.lse[query];
    Lanes sum = all_lanes(0);
    if (lse == -__builtin_inff()) {
      for (int64_t j = 0; j < keys; ++j) row[j] = grads[j] = 0;
      return sum;
    }
    for (int64_t j = 0; j < keys; j += kFloatLanes) {
      for (int i = 0; i < Lanes::kParts; ++i) {
        const int64_t at = j + i * kFloats;
        const Float weight = exponential(q.logit(load(row + at), at) - lse);
        store(row + at, weight);
        sum.part[i] = multiply_add(weight, load(grads + at), sum.part[i]);
      }
    }
    return sum;
  }

  // Gradients of weights, whose mean under them is given, become those of logits, which are added
  // to `total`; for each lane the sum of their products with the distance in time.
  Lanes slope_row(int64_t query, float mean, const float* row, float* slopes, float* total) const {
    const Query q = query_of(query);
    const int64_t keys = keys_;
    Lanes distance = all_lanes(0);
    for (int64_t j = 0; j < keys; j += kFloatLanes) {
      for (int i = 0; i < Lanes::kParts; ++i) {
        const int64_t at = j + i * kFloats;
        const Float slope = load(row + at) * (load(slopes + at) - mean);
        store(slopes + at, slope);
        store(total + at, load(total + at) + slope);
        distance.part[i] = multiply_add(slope, q.apart(at), distance.part[i]);
      }
    }
    return distance;
  }

  void put_row(const float* in, float scale, float* out) const {
    for (int64_t d = 0; d < w_.width; ++d) out[d] = in[d] * scale;
  }

  void put_bias(const float* by_kind) const {
    for (int64_t i = 0; i < w_.kinds * w_.kinds; ++i) w_.dbias[i] = 0;
    for (int64_t m = 0; m < w_.kinds; ++m) {
      for (int64_t j = 0; j < w_.length_k; ++j) {
        const int32_t other = w_.modality_k[j];
        if (other >= 0 && other < w_.kinds)
          w_.dbias[m * w_.kinds + other] += by_kind[m * keys_ + j];
      }
    }
  }

  const AttentionWindow& w_;
  const int64_t keys_, features_;  // of whole vectors
  const int64_t block_;
  float* free_;
  float *bias_ = nullptr, *seconds_ = nullptr;
};

void attend_window(const AttentionWindow& window, float* scratch) {
  AttentionHead(window, scratch).forward();
}

void attend_window_backward(const AttentionWindow& window, float* scratch) {
  AttentionHead(window, scratch).backward();
}
