#include "products.hpp"

#include <algorithm>
#include <utility>

#include "aligned.hpp"
#include "kernels.hpp"
#include "panels.hpp"
#include "stretches.hpp"

namespace physiofast {
namespace {

struct Panels;
struct Products;

std::vector<OfModality> modalities_of(const PatchValues& patches, std::int64_t count) {
  return by_modality(patches.lengths, patches.edges, count, patches.values.size);
}

// What products of samples with weights take, in floats that are copied.
std::int64_t work_of(const PatchValues& patches, std::int64_t width) {
  return patches.values.size * width / 8;
}

// One panel of some rows of the gradient of one modality's weights. Sums of many tokens would lose
// digits: those of kBlocks blocks are summed, and then added to all.
void gradient_of_panel(const OfModality& modality, const float* values, const float* grad,
                       std::int64_t width, std::int64_t first, const Panel& panel, float* weight,
                       Watch* watch) {
  const std::int64_t length = modality.length, samples = std::min(kDepth, length - first);
  const std::int64_t size = samples * panel.padded;
  float* all = kept<Products, float>(2 * size + kTokens * panel.padded);
  float *some = all + size, *rows = some + size;
  std::fill(all, all + size, 0.0F);
  for (std::int64_t t = 0, block = 0; t < modality.count; t += kTokens, ++block) {
    watch->poll();
    const std::int64_t tokens = std::min(kTokens, modality.count - t);
    pack(grad + (modality.first + t) * width, tokens, width, panel, rows);
    const bool adds = block % kBlocks != 0, is_last = t + tokens == modality.count;
    kernels().multiply({values + modality.values + t * length + first, 1, length, rows,
                        panel.padded, samples, panel.padded, tokens, some, panel.padded},
                       adds);
    if (is_last || block % kBlocks == kBlocks - 1) kernels().accumulate_f32(some, size, all);
  }
  unpack(all, samples, panel, weight + (modality.offset + first) * width, width);
}

}  // namespace

void embed_patches(const EmbedJob& job, float* out, Workers workers, const StopQuery& stop) {
  const std::vector<OfModality> modalities = modalities_of(job.patches, job.count);
  const std::int64_t width = job.width, padded = round_up(width, kFloatLanes);
  const std::int64_t panels = panels_in(width);
  const std::int64_t kinds = static_cast<std::int64_t>(modalities.size());
  const std::int64_t lengths = modalities.back().offset + modalities.back().length;
  float* packed = kept<Panels, float>(lengths * padded);
  const auto pack_panel = [&](std::int64_t i, Watch&) {
    const OfModality& modality = modalities[static_cast<std::size_t>(i / panels)];
    const Panel panel = panel_of(i % panels, width);
    const float* weight = job.weight + modality.offset * width;
    pack(weight, modality.length, width, panel,
         packed + modality.offset * padded + modality.length * panel.first);
  };
  parallel_for(workers.worth(lengths * width), kinds * panels, pack_panel, stop);

  const RowWriter writer(job.count, width);
  std::vector<std::pair<const OfModality*, std::int64_t>> blocks;  // and the first of its tokens
  for (const OfModality& modality : modalities) {
    for (std::int64_t t = 0; t < modality.count; t += kTokens) blocks.emplace_back(&modality, t);
  }
  const auto embed_block = [&](std::int64_t i, Watch&) {
    const auto& [modality, t] = blocks[static_cast<std::size_t>(i)];
    const std::int64_t tokens = std::min(kTokens, modality->count - t), length = modality->length;
    float* rows = kept<Products, float>(kTokens * padded);
    multiply_panels(job.patches.values.data + modality->values + t * length, length, tokens, length,
                    packed + modality->offset * padded, width, rows, padded, false);
    for (std::int64_t j = 0; j < tokens; ++j) {
      const std::int64_t at = modality->first + t + j;
      const std::int64_t place = place_of(job.order[at], at, job.count), id = job.ids[place];
      if (id < 0) throw BoundsError("id of token", place, "0 or more", id);
      writer.sum(rows + j * padded, job.table[id % job.table.count], out + place * width);
    }
    stream_end();
  };
  const Workers few = workers.worth(work_of(job.patches, width));
  parallel_for(few, static_cast<std::int64_t>(blocks.size()), embed_block, stop);
  for (std::int64_t j = job.patches.edges[kinds]; j < job.count; ++j) {
    writer.zero(out + place_of(job.order[j], j, job.count) * width);
  }
  stream_end();
}

void weight_gradients(const PatchValues& patches, const float* grad, std::int64_t count,
                      std::int64_t width, float* weight, Workers workers, const StopQuery& stop) {
  const std::vector<OfModality> modalities = modalities_of(patches, count);
  const std::int64_t panels = panels_in(width);
  std::vector<std::pair<const OfModality*, std::int64_t>> parts;  // and the first of its samples
  for (const OfModality& modality : modalities) {
    for (std::int64_t k = 0; k < modality.length; k += kDepth) parts.emplace_back(&modality, k);
  }
  const auto task = [&](std::int64_t i, Watch& watch) {
    const auto& [modality, first] = parts[static_cast<std::size_t>(i / panels)];
    gradient_of_panel(*modality, patches.values.data, grad, width, first,
                      panel_of(i % panels, width), weight, &watch);
  };
  const Workers few = workers.worth(work_of(patches, width));
  parallel_for(few, static_cast<std::int64_t>(parts.size()) * panels, task, stop);
}

}  // namespace physiofast
