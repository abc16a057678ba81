#include "tokens.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "stretches.hpp"

namespace physiofast {
namespace {

void values_of(const Patch<float>& patch, float* out) {
  std::memcpy(out, patch.samples, static_cast<std::size_t>(patch.length) * sizeof(float));
  if (patch.scale != 1 || patch.shift != 0) {
    kernels().affine_f32(out, patch.length, patch.scale, patch.shift);
  }
}

void values_of(const Patch<std::int16_t>& patch, float* out) {
  kernels().dequantise_f32(patch.samples, patch.length, patch.scale, patch.shift, out);
}

}  // namespace

template <class Sample>
void gather_patches(const PatchRows<Sample>& rows, const ByModality& by, Span<float> out,
                    Workers workers, const StopQuery& stop) {
  const std::vector<OfModality> modalities =
      by_modality(rows.lengths, by.edges, rows.ids.size, out.size);
  const std::int64_t longest = *std::max_element(rows.lengths.begin(), rows.lengths.end());
  const std::int64_t used = by.edges[by.edges.size - 1];
  for_stretches(used, longest, out.size, workers, stop, [&](std::int64_t first, std::int64_t last) {
    std::int64_t m = 0;
    for (std::int64_t j = first; j < last; ++j) {
      while (j >= by.edges[m + 1]) ++m;
      const OfModality& modality = modalities[static_cast<std::size_t>(m)];
      const std::int64_t place = place_of(by.order[j], j, rows.ids.size);
      const Patch<Sample> patch = rows[place];
      if (patch.length != modality.length) {
        throw BoundsError("samples of token", place, std::to_string(modality.length), patch.length);
      }
      values_of(patch, out.data + modality.values + (j - modality.first) * modality.length);
    }
  });
}

template void gather_patches(const PatchRows<float>&, const ByModality&, Span<float>, Workers,
                             const StopQuery&);
template void gather_patches(const PatchRows<std::int16_t>&, const ByModality&, Span<float>,
                             Workers, const StopQuery&);

void order_gradients(const OrderJob& job, float* by_kind, float* table, Workers workers,
                     const StopQuery& stop) {
  const std::int64_t count = job.grad.count, width = job.width;
  std::vector<std::int64_t> rank(static_cast<std::size_t>(count));
  for (std::int64_t j = 0; j < count; ++j) {
    rank[static_cast<std::size_t>(place_of(job.order[j], j, count))] = j;
  }
  const RowWriter writer(count, width);
  // Sums of a stretch of token ids stay in a cache while the windows go by.
  const auto stretch = [&](std::int64_t first, std::int64_t last) {
    std::fill(table + first * width, table + last * width, 0.0F);
    for (std::int64_t b = 0; b < job.windows; ++b) {
      for (std::int64_t n = first; n < last; ++n) {
        const std::int64_t at = b * job.tokens + n;
        const std::int64_t place = row_or_none(job.slots[at], at, count);
        if (place < 0) continue;
        writer.copy(job.grad[place], by_kind + rank[static_cast<std::size_t>(place)] * width);
        kernels().accumulate_f32(job.grad[place], width, table + n * width);
      }
    }
    stream_end();
  };
  for_stretches(job.tokens, width, 2 * count * width, workers, stop, stretch);
}

void assemble_rows(const AssembleJob& job, float* out, Workers workers, const StopQuery& stop) {
  const RowWriter writer(job.count, job.width);
  const RowNumbers slots{job.ids, job.slots};
  const std::int64_t work = job.count * job.width;
  for_stretches(
      job.count, job.width, work, workers, stop, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
          const std::int64_t slot = slots(t, job.encoded.count), id = job.ids[t];
          float* row = out + t * job.width;
          if (id < 0) {
            writer.zero(row);
          } else if (slot < 0) {
            writer.copy(job.table_hidden[id % job.table_hidden.count], row);
          } else {
            writer.sum(job.encoded[slot], job.table_visible[id % job.table_visible.count], row);
          }
        }
        stream_end();
      });
}

void assemble_gradients(const FeatureRows& grad, std::int64_t width, const TokenSlots& slots,
                        const std::int32_t* ids, const AssembleGradients& out, Workers workers,
                        const StopQuery& stop) {
  const RowWriter writer(out.count, width);
  for (std::int64_t t = 0; t < out.count; ++t) {
    if (ids[t] < 0) writer.zero(out.encoded + t * width);
  }
  const auto stretch = [&](std::int64_t first, std::int64_t last) {
    std::fill(out.visible + first * width, out.visible + last * width, 0.0F);
    std::fill(out.hidden + first * width, out.hidden + last * width, 0.0F);
    for (std::int64_t b = 0; b < slots.windows; ++b) {
      for (std::int64_t n = first; n < last; ++n) {
        const std::int64_t at = b * slots.tokens + n;
        const std::int64_t present = row_or_none(slots.present[at], at, grad.count);
        const std::int64_t visible = row_or_none(slots.visible[at], at, out.count);
        if (visible >= 0) {
          float* row = out.encoded + visible * width;
          present < 0 ? writer.zero(row) : writer.copy(grad[present], row);
        }
        if (present < 0) continue;
        kernels().accumulate_f32(grad[present], width,
                                 (visible < 0 ? out.hidden : out.visible) + n * width);
      }
    }
    stream_end();
  };
  for_stretches(slots.tokens, width, grad.count * width, workers, stop, stretch);
  stream_end();
}

}  // namespace physiofast
