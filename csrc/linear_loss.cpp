#include "linear_loss.hpp"

#include <algorithm>
#include <vector>

#include "aligned.hpp"
#include "panels.hpp"
#include "stretches.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 768;  // tokens of a task, if predictions are no wider than that

struct Weights;
struct Partials;
struct Work;
struct Sums;

// Rows of `weight` [rows, columns] are columns of the packed matrix.
void pack_turned(const float* weight, std::int64_t columns, const Panel& panel, float* out) {
  for (std::int64_t k = 0; k < columns; ++k, out += panel.padded) {
    for (std::int64_t n = 0; n < panel.used; ++n) out[n] = weight[(panel.first + n) * columns + k];
    std::fill(out + panel.used, out + panel.padded, 0.0F);
  }
}

// What the tasks of a call share. P samples are predicted of D features.
template <class Sample>
class LinearLoss {
 public:
  LinearLoss(const FeatureRows& features, const LinearMap& map, const Targets<Sample>& targets,
             const LinearGradients* gradients)
      : features_(features),
        map_(map),
        targets_(targets),
        gradients_(gradients),
        samples_(targets.width),
        width_(map.width),
        padded_samples_(round_up(samples_, kFloatLanes)),
        padded_width_(round_up(width_, kFloatLanes)),
        stride_(padded_samples_ + kFloatLanes),
        writer_(features.count, width_),
        errors_(static_cast<std::size_t>(features.count)) {
    const std::int64_t most = std::max(kStretch, samples_);  // sums take no more than features do
    stretches_ = (features.count + most - 1) / most;
  }

  void run(const ErrorSums& out, Workers workers, const StopQuery& stop) {
    pack_weights(workers, stop);
    if (gradients_) partials_ = kept<Partials, float>(stretches_ * size_of_sums());
    const auto stretch = [&](std::int64_t s, Watch& watch) {
      const std::int64_t count = features_.count;
      float* sums = gradients_ ? partials_ + s * size_of_sums() : nullptr;
      predict(s * count / stretches_, (s + 1) * count / stretches_, sums, &watch);
    };
    parallel_for(workers, stretches_, stretch, stop);
    if (gradients_) add_partials(workers, stop);
    sum_by_modality(targets_.patches, errors_, out);
  }

 private:
  // Gradients of weights in panels, and of the bias behind them.
  std::int64_t size_of_sums() const { return samples_ * padded_width_ + padded_samples_; }

  void pack_weights(Workers workers, const StopQuery& stop) {
    const std::int64_t first = width_ * padded_samples_;
    float* packed = kept<Weights, float>(first + (gradients_ ? samples_ * padded_width_ : 0));
    forward_ = packed, backward_ = packed + first;
    const std::int64_t forward = panels_in(samples_);
    const auto task = [&](std::int64_t i, Watch&) {
      if (i < forward) {
        const Panel panel = panel_of(i, samples_);
        pack_turned(map_.weight, width_, panel, packed + panel.first * width_);
      } else {
        const Panel panel = panel_of(i - forward, width_);
        pack(map_.weight, samples_, width_, panel, packed + first + panel.first * samples_);
      }
    };
    const std::int64_t panels = forward + (gradients_ ? panels_in(width_) : 0);
    parallel_for(workers.worth(samples_ * width_), panels, task, stop);
  }

  // Tokens [first, last). Sums of many would lose digits: those of kBlocks blocks are summed, and
  // then added to all.
  void predict(std::int64_t first, std::int64_t last, float* all, Watch* watch) {
    float* pred = kept<Work, float>(kTokens * (stride_ + padded_width_) + size_of_sums());
    float *rows = pred + kTokens * stride_, *some = rows + kTokens * padded_width_;
    if (gradients_) std::fill(all, all + size_of_sums(), 0.0F);
    std::int64_t block = 0;
    for (std::int64_t t = first; t < last; t += kTokens, ++block) {
      watch->poll();
      const std::int64_t tokens = std::min(kTokens, last - t);
      for (std::int64_t j = 0; j < tokens; ++j) {
        std::copy(map_.bias, map_.bias + samples_, pred + j * stride_);
      }
      multiply_panels(features_[t], features_.stride, tokens, width_, forward_, samples_, pred,
                      stride_, true);
      for (std::int64_t j = 0; j < tokens; ++j) {
        float* row = pred + j * stride_;
        errors_[static_cast<std::size_t>(t + j)] = error_of_token(targets_, t + j, row, row);
      }
      if (!gradients_) continue;
      write_gradients(t, tokens, pred, rows);
      add_gradients(t, tokens, pred, rows, some, block % kBlocks != 0);
      if (block % kBlocks == kBlocks - 1 || t + tokens == last) {
        kernels().accumulate_f32(some, size_of_sums(), all);
      }
    }
    stream_end();
  }

  // Of the features of some tokens, whose predictions' gradients are `grad`.
  void write_gradients(std::int64_t t, std::int64_t tokens, const float* grad, float* rows) {
    multiply_panels(grad, stride_, tokens, samples_, backward_, width_, rows, padded_width_, false);
    for (std::int64_t j = 0; j < tokens; ++j) {
      float* out = gradients_->features + (t + j) * width_;
      is_token(t + j) ? writer_.copy(rows + j * padded_width_, out) : writer_.zero(out);
    }
  }

  // Of weights and bias, by the same tokens. What features of a tail hold does not matter.
  void add_gradients(std::int64_t t, std::int64_t tokens, const float* grad, float* rows,
                     float* some, bool adds) {
    for (std::int64_t n = 0; n < panels_in(width_); ++n) {
      const Panel panel = panel_of(n, width_);
      pack(features_[t], tokens, features_.stride, panel, rows);
      for (std::int64_t j = 0; j < tokens; ++j) {
        float* row = rows + j * panel.padded;
        if (!is_token(t + j)) std::fill(row, row + panel.padded, 0.0F);
      }
      kernels().multiply({grad, 1, stride_, rows, panel.padded, samples_, panel.padded, tokens,
                          some + panel.first * samples_, panel.padded},
                         adds);
    }
    float* bias = some + samples_ * padded_width_;
    if (!adds) std::fill(bias, bias + padded_samples_, 0.0F);
    for (std::int64_t j = 0; j < tokens; ++j) {
      kernels().accumulate_f32(grad + j * stride_, samples_, bias);
    }
  }

  bool is_token(std::int64_t place) const { return targets_.patches.ids[place] >= 0; }

  void add_partials(Workers workers, const StopQuery& stop) {
    const std::int64_t panels = panels_in(width_);
    const auto task = [&](std::int64_t n, Watch&) {
      const bool is_bias = n == panels;
      const Panel panel = is_bias ? Panel{padded_width_, samples_, samples_} : panel_of(n, width_);
      const std::int64_t at = panel.first * samples_;
      const std::int64_t size = is_bias ? samples_ : samples_ * panel.padded;
      float* sum = kept<Sums, float>(size);
      std::fill(sum, sum + size, 0.0F);
      for (std::int64_t s = 0; s < stretches_; ++s) {
        kernels().accumulate_f32(partials_ + s * size_of_sums() + at, size, sum);
      }
      if (is_bias) {
        std::copy(sum, sum + size, gradients_->bias);
      } else {
        unpack(sum, samples_, panel, gradients_->weight, width_);
      }
    };
    parallel_for(workers.worth(stretches_ * size_of_sums()), panels + 1, task, stop);
  }

  const FeatureRows& features_;
  const LinearMap& map_;
  const Targets<Sample>& targets_;
  const LinearGradients* gradients_;
  std::int64_t samples_, width_, padded_samples_, padded_width_;
  std::int64_t stride_;  // of predictions: not a power of two, whose rows would share cache lines
  std::int64_t stretches_ = 0;
  RowWriter writer_;
  std::vector<float> errors_;
  const float *forward_ = nullptr, *backward_ = nullptr;
  float* partials_ = nullptr;
};

}  // namespace

template <class Sample>
void linear_errors(const FeatureRows& features, const LinearMap& map,
                   const Targets<Sample>& targets, const ErrorSums& out,
                   const LinearGradients* gradients, Workers workers, const StopQuery& stop) {
  LinearLoss<Sample>(features, map, targets, gradients).run(out, workers, stop);
}

template void linear_errors(const FeatureRows&, const LinearMap&, const Targets<float>&,
                            const ErrorSums&, const LinearGradients*, Workers, const StopQuery&);
template void linear_errors(const FeatureRows&, const LinearMap&, const Targets<std::int16_t>&,
                            const ErrorSums&, const LinearGradients*, Workers, const StopQuery&);

}  // namespace physiofast
