// Rows of features and the errors of predicted ones, in Python.
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "linear_loss.hpp"
#include "products.hpp"
#include "rows.hpp"
#include "tokens.hpp"

namespace physiofast {
namespace bindings {
namespace {

using Floats = py::array_t<float, 0>;
using Places = Dense<std::int32_t>;

// [n, width] whose features lie side by side. Nobody steps along an axis of one element.
FeatureRows rows_of(const Floats& x, std::int64_t width, const char* name) {
  const auto size = static_cast<py::ssize_t>(sizeof(float));
  require(x.ndim() == 2 && x.shape(1) == width, name);
  require(x.size() == 0 || width == 1 || x.strides(1) == size, name);
  const py::ssize_t step = x.size() == 0 || x.shape(0) == 1 ? 0 : x.strides(0);
  require(step % size == 0, name);
  return {x.data(), x.shape(0), step / size};
}

Span<const std::int32_t> places_of(const Places& places) { return {places.data(), places.size()}; }

float* output(Floats& out, const char* name) {
  require(out.ndim() == 2 && (out.flags() & py::array::c_style) != 0, name);
  return out.mutable_data();
}

void run_pick(const Floats& rows, const Places& from, const std::optional<Places>& through,
              const std::optional<Floats>& onto, Floats& out, Workers workers) {
  float* to = output(out, "out");
  const std::int64_t count = out.shape(0), width = out.shape(1);
  require(from.size() == count, "from");
  require(!onto || onto->shape(0) == count, "onto");
  static const std::int32_t none = -1;  // where an empty table begins, which is no missing one
  RowNumbers numbers{from.data(), {nullptr, 0}};
  if (through) numbers.through = {through->size() > 0 ? through->data() : &none, through->size()};
  const FeatureRows sums = onto ? rows_of(*onto, width, "onto") : FeatureRows{nullptr, 0, 0};
  const PickJob job{rows_of(rows, width, "rows"), numbers, sums, count, width};
  run_released([&](const auto& stop) { pick_rows(job, to, workers, stop); });
}

// The samples of a packing's tokens, and the arrays that they lie in.
template <class Sample>
struct Patches {
  Patches(Dense<Sample> samples, Dense<std::int64_t> row_start, Dense<float> row_scale,
          Dense<float> row_shift, Places ids, Places modality, std::vector<std::int64_t> lengths,
          std::int64_t patches)
      : held{samples, row_start, row_scale, row_shift, ids, modality},
        rows{{samples.data(), samples.size()},
             {row_start.data(), row_start.size()},
             row_scale.data(),
             row_shift.data(),
             places_of(ids),
             modality.data(),
             std::move(lengths),
             patches} {
    require(row_scale.size() == row_start.size() && row_shift.size() == row_start.size(), "scale");
    require(ids.size() == modality.size(), "modality");
    require(patches > 0 && !rows.lengths.empty(), "patches");
    for (const std::int64_t length : rows.lengths) require(length > 0, "lengths");
  }

  std::vector<py::array> held;
  PatchRows<Sample> rows;
};

template <class Sample>
void run_gather(const Patches<Sample>& patches, const Places& by_modality,
                const Places& cu_modality, Dense<float>& out, Workers workers) {
  const PatchRows<Sample>& rows = patches.rows;
  require(by_modality.size() == rows.ids.size, "by_modality");
  require(cu_modality.size() == static_cast<py::ssize_t>(rows.lengths.size()) + 1, "cu_modality");
  const ByModality by{by_modality.data(), places_of(cu_modality)};
  const Span<float> to{out.mutable_data(), out.size()};
  run_released([&](const auto& stop) { gather_patches(rows, by, to, workers, stop); });
}

void run_order(const Floats& grad, const Places& slots, const Places& by_modality, Floats& by_kind,
               Floats& table, Workers workers) {
  float *kinds = output(by_kind, "by_kind"), *sums = output(table, "table");
  const std::int64_t count = by_kind.shape(0), width = by_kind.shape(1);
  require(slots.ndim() == 2 && slots.shape(1) == table.shape(0), "slots");
  require(table.shape(1) == width && by_modality.size() == count && grad.shape(0) == count, "grad");
  const OrderJob job{rows_of(grad, width, "grad"),
                     slots.data(),
                     by_modality.data(),
                     slots.shape(0),
                     slots.shape(1),
                     width};
  run_released([&](const auto& stop) { order_gradients(job, kinds, sums, workers, stop); });
}

// Patches as gather_patches wrote them, for weights [sum of lengths, width].
PatchValues values_of(const Dense<float>& values, const Places& cu_modality,
                      const std::vector<std::int64_t>& lengths, const Dense<float>& weight) {
  const auto kinds = static_cast<py::ssize_t>(lengths.size());
  require(kinds > 0 && cu_modality.size() == kinds + 1, "cu_modality");
  std::int64_t rows = 0;
  for (const std::int64_t length : lengths) {
    require(length > 0, "lengths");
    rows += length;
  }
  require(weight.ndim() == 2 && weight.shape(0) == rows, "weight");
  return {{values.data(), values.size()}, places_of(cu_modality), lengths};
}

void run_embed(const Dense<float>& values, const Places& cu_modality,
               const std::vector<std::int64_t>& lengths, const Dense<float>& weight,
               const Places& by_modality, const Places& ids, const Floats& table, Floats& out,
               Workers workers) {
  float* to = output(out, "out");
  const std::int64_t count = out.shape(0), width = out.shape(1);
  const PatchValues patches = values_of(values, cu_modality, lengths, weight);
  require(by_modality.size() == count && ids.size() == count, "by_modality");
  require(weight.shape(1) == width, "weight");
  require(table.shape(0) > 0 || count == 0, "table");
  const EmbedJob job{
      patches, weight.data(), rows_of(table, width, "table"), by_modality.data(), ids.data(),
      count,   width};
  run_released([&](const auto& stop) { embed_patches(job, to, workers, stop); });
}

void run_weight_gradients(const Dense<float>& values, const Places& cu_modality,
                          const std::vector<std::int64_t>& lengths, const Dense<float>& grad,
                          Dense<float>& weight, Workers workers) {
  require(grad.ndim() == 2, "grad");
  const PatchValues patches = values_of(values, cu_modality, lengths, weight);
  require(weight.shape(1) == grad.shape(1), "weight");
  float* out = weight.mutable_data();
  run_released([&](const auto& stop) {
    weight_gradients(patches, grad.data(), grad.shape(0), grad.shape(1), out, workers, stop);
  });
}

TokenSlots slots_of(const Places& visible, const Places& present) {
  require(visible.ndim() == 2 && present.ndim() == 2 && visible.shape(0) == present.shape(0) &&
              visible.shape(1) == present.shape(1),
          "slots");
  return {visible.data(), present.data(), visible.shape(0), visible.shape(1)};
}

void run_assemble(const Floats& encoded, const Places& ids, const Places& slot_visible,
                  const Floats& table_visible, const Floats& table_hidden, Floats& out,
                  Workers workers) {
  float* to = output(out, "out");
  const std::int64_t count = out.shape(0), width = out.shape(1);
  require(ids.size() == count, "ids");
  require(slot_visible.ndim() == 2 && table_visible.shape(0) == slot_visible.shape(1) &&
              table_hidden.shape(0) == slot_visible.shape(1),
          "tables");
  const AssembleJob job{rows_of(encoded, width, "encoded"),
                        rows_of(table_visible, width, "table_visible"),
                        rows_of(table_hidden, width, "table_hidden"),
                        places_of(slot_visible),
                        ids.data(),
                        count,
                        width};
  run_released([&](const auto& stop) { assemble_rows(job, to, workers, stop); });
}

void run_assemble_backward(const Floats& grad, const Places& ids, const Places& slot_visible,
                           const Places& slot_present, Floats& encoded, Floats& visible,
                           Floats& hidden, Workers workers) {
  const TokenSlots slots = slots_of(slot_visible, slot_present);
  const AssembleGradients out{output(encoded, "encoded"), output(visible, "visible"),
                              output(hidden, "hidden"), encoded.shape(0)};
  const std::int64_t width = encoded.shape(1);
  require(ids.size() == out.count, "ids");
  for (const Floats* table : {&visible, &hidden}) {
    require(table->shape(0) == slots.tokens && table->shape(1) == width, "tables");
  }
  const FeatureRows rows = rows_of(grad, width, "grad");
  run_released([&](const auto& stop) {
    assemble_gradients(rows, width, slots, ids.data(), out, workers, stop);
  });
}

// What predictions of `width` samples are compared with, and where the sums go.
template <class Sample>
struct Errors {
  Errors(const Patches<Sample>& patches, const Dense<float>& weight,
         const Dense<std::int64_t>& normalise, Dense<double>& total, Dense<double>& number,
         std::int64_t width)
      : targets{patches.rows, weight.data(), normalise.data(), width},
        sums{{total.mutable_data(), total.size()}, {number.mutable_data(), number.size()}} {
    const auto kinds = static_cast<py::ssize_t>(patches.rows.lengths.size());
    require(weight.size() == kinds && total.size() == kinds && number.size() == kinds, "weight");
    require(normalise.size() == kinds, "normalise");
  }

  Targets<Sample> targets;
  ErrorSums sums;
};

template <class Sample>
void run_errors(const Floats& pred, const Patches<Sample>& patches, const Dense<float>& weight,
                const Dense<std::int64_t>& normalise, Floats& grad, Dense<double>& total,
                Dense<double>& number, Workers workers) {
  float* to = output(grad, "grad");
  const std::int64_t count = grad.shape(0), width = grad.shape(1);
  const FeatureRows rows = rows_of(pred, width, "pred");
  require(rows.count == count && patches.rows.ids.size == count, "pred");
  const Errors<Sample> errors(patches, weight, normalise, total, number, width);
  run_released([&](const auto& stop) {
    squared_errors(rows, errors.targets, to, errors.sums, workers, stop);
  });
}

template <class Sample>
void run_linear_errors(const Floats& features, const Dense<float>& head, const Dense<float>& bias,
                       const Patches<Sample>& patches, const Dense<float>& weight,
                       const Dense<std::int64_t>& normalise,
                       std::optional<std::array<Floats, 3>> grads, Dense<double>& total,
                       Dense<double>& number, Workers workers) {
  require(head.ndim() == 2 && head.shape(0) > 0 && head.shape(1) > 0, "head");
  const std::int64_t samples = head.shape(0), width = head.shape(1);
  require(bias.size() == samples, "bias");
  const FeatureRows rows = rows_of(features, width, "features");
  require(patches.rows.ids.size == rows.count, "features");
  const Errors<Sample> errors(patches, weight, normalise, total, number, samples);
  const LinearMap map{head.data(), bias.data(), width};
  LinearGradients out{};
  if (grads) {
    auto& [of_features, of_head, of_bias] = *grads;
    out = {output(of_features, "grads"), output(of_head, "grads"), of_bias.mutable_data()};
    require(of_features.shape(0) == rows.count && of_features.shape(1) == width, "grads");
    require(of_head.shape(0) == samples && of_head.shape(1) == width, "grads");
    require(of_bias.ndim() == 1 && of_bias.shape(0) == samples, "grads");
    require(samples == 1 || of_bias.strides(0) == sizeof(float), "grads");
  }
  run_released([&](const auto& stop) {
    linear_errors(rows, map, errors.targets, errors.sums, grads ? &out : nullptr, workers, stop);
  });
}

template <class Sample>
void bind_patches(py::module_& m, const char* name) {
  py::class_<Patches<Sample>>(m, name).def(
      py::init<Dense<Sample>, Dense<std::int64_t>, Dense<float>, Dense<float>, Places, Places,
               std::vector<std::int64_t>, std::int64_t>());
  m.def("gather_patches", &run_gather<Sample>, py::arg("patches"),
        py::arg("by_modality").noconvert(), py::arg("cu_modality").noconvert(),
        py::arg("out").noconvert(), py::arg("workers"));
  m.def("squared_errors", &run_errors<Sample>, py::arg("pred").noconvert(), py::arg("patches"),
        py::arg("weight").noconvert(), py::arg("normalise").noconvert(),
        py::arg("grad").noconvert(), py::arg("total").noconvert(), py::arg("number").noconvert(),
        py::arg("workers"));
  m.def("linear_errors", &run_linear_errors<Sample>, py::arg("features").noconvert(),
        py::arg("head").noconvert(), py::arg("bias").noconvert(), py::arg("patches"),
        py::arg("weight").noconvert(), py::arg("normalise").noconvert(),
        py::arg("grads").noconvert(), py::arg("total").noconvert(), py::arg("number").noconvert(),
        py::arg("workers"));
}

}  // namespace

void bind_rows(py::module_& m) {
  bind_patches<float>(m, "PatchesOfFloat32");
  bind_patches<std::int16_t>(m, "PatchesOfInt16");
  m.def("pick_rows", &run_pick, py::arg("rows").noconvert(), py::arg("from_").noconvert(),
        py::arg("through").noconvert(), py::arg("onto").noconvert(), py::arg("out").noconvert(),
        py::arg("workers"));
  m.def("order_gradients", &run_order, py::arg("grad").noconvert(), py::arg("slots").noconvert(),
        py::arg("by_modality").noconvert(), py::arg("by_kind").noconvert(),
        py::arg("table").noconvert(), py::arg("workers"));
  m.def("embed_patches", &run_embed, py::arg("values").noconvert(),
        py::arg("cu_modality").noconvert(), py::arg("lengths"), py::arg("weight").noconvert(),
        py::arg("by_modality").noconvert(), py::arg("ids").noconvert(),
        py::arg("table").noconvert(), py::arg("out").noconvert(), py::arg("workers"));
  m.def("weight_gradients", &run_weight_gradients, py::arg("values").noconvert(),
        py::arg("cu_modality").noconvert(), py::arg("lengths"), py::arg("grad").noconvert(),
        py::arg("weight").noconvert(), py::arg("workers"));
  m.def("assemble_rows", &run_assemble, py::arg("encoded").noconvert(), py::arg("ids").noconvert(),
        py::arg("slot_visible").noconvert(), py::arg("table_visible").noconvert(),
        py::arg("table_hidden").noconvert(), py::arg("out").noconvert(), py::arg("workers"));
  m.def("assemble_gradients", &run_assemble_backward, py::arg("grad").noconvert(),
        py::arg("ids").noconvert(), py::arg("slot_visible").noconvert(),
        py::arg("slot_present").noconvert(), py::arg("encoded").noconvert(),
        py::arg("visible").noconvert(), py::arg("hidden").noconvert(), py::arg("workers"));
}

}  // namespace bindings
}  // namespace physiofast
