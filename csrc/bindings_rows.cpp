// Rows of features and the errors of predicted ones, in Python.
#include <string>

#include "bindings.hpp"
#include "loss.hpp"
#include "rows.hpp"

namespace physiofast {
namespace bindings {
namespace {

using Floats = py::array_t<float, 0>;
using Numbers = py::array_t<std::int32_t, 0>;

void require(bool fits, const char* what) {
  if (!fits) throw py::value_error(std::string(what) + " does not fit the other arguments");
}

// [n, width] whose features lie side by side.
FeatureRows rows_of(const Floats& x, std::int64_t width, const char* name) {
  const auto size = static_cast<py::ssize_t>(sizeof(float));
  require(x.ndim() == 2 && x.shape(1) == width, name);
  require(x.size() == 0 || (x.strides(1) == size && x.strides(0) % size == 0), name);
  return {x.data(), x.shape(0), x.size() == 0 ? 0 : x.strides(0) / size};
}

std::int64_t stride(const Numbers& numbers, int axis) {
  return numbers.strides(axis) / static_cast<py::ssize_t>(sizeof(std::int32_t));
}

RowNumbers numbers_of(const Numbers& numbers, std::int64_t count, const char* name) {
  require(numbers.ndim() == 1 && numbers.shape(0) == count, name);
  return {numbers.data(), stride(numbers, 0)};
}

float* output(Floats& out, const char* name) {
  require(out.ndim() == 2 && (out.flags() & py::array::c_style) != 0, name);
  return out.mutable_data();
}

void run_pick(const Floats& base, const Numbers& from, const Floats& more, const Numbers& and_from,
              Floats& out, Workers workers) {
  float* to = output(out, "out");
  const std::int64_t count = out.shape(0), width = out.shape(1);
  const PickJob job{rows_of(base, width, "base"),
                    rows_of(more, width, "more"),
                    numbers_of(from, count, "from"),
                    numbers_of(and_from, count, "and_from"),
                    count,
                    width};
  run_released([&](const auto& stop) { pick_rows(job, to, workers, stop); });
}

void run_sum(const Floats& rows, const Numbers& numbers, Floats& out, Workers workers) {
  float* to = output(out, "out");
  require(numbers.ndim() == 2 && numbers.shape(0) == out.shape(0), "numbers");
  const SumJob job{rows_of(rows, out.shape(1), "rows"),
                   numbers.data(),
                   stride(numbers, 0),
                   stride(numbers, 1),
                   numbers.shape(0),
                   numbers.shape(1),
                   out.shape(1)};
  run_released([&](const auto& stop) { sum_rows(job, to, workers, stop); });
}

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

// `scale` and `shift` have size 0 where samples are values.
template <class Sample>
void run_errors(const Floats& pred, const Dense<Sample>& samples, const Dense<std::int64_t>& first,
                const Dense<std::int32_t>& length, const Dense<float>& scale,
                const Dense<float>& shift, const Dense<float>& factor, Floats& grad, Floats& mean,
                Workers workers) {
  float* to = output(grad, "grad");
  const std::int64_t count = grad.shape(0), width = grad.shape(1);
  const FeatureRows rows = rows_of(pred, width, "pred");
  require(rows.count == count && first.size() == count && length.size() == count,
          "first or length");
  require(factor.size() == count, "factor");
  require(scale.size() == shift.size() && (scale.size() == count || scale.size() == 0), "scale");
  require(mean.size() == count && (mean.flags() & py::array::c_style) != 0, "mean");
  const bool are_values = scale.size() == 0;
  const LossJob<Sample> job{rows.data,
                            rows.stride,
                            count,
                            width,
                            samples.data(),
                            samples.size(),
                            first.data(),
                            length.data(),
                            are_values ? nullptr : scale.data(),
                            are_values ? nullptr : shift.data(),
                            factor.data()};
  float* means = mean.mutable_data();
  run_released([&](const auto& stop) { squared_errors(job, to, means, workers, stop); });
}

template <class Sample>
void bind_errors(py::module_& m) {
  m.def("squared_errors", &run_errors<Sample>, py::arg("pred").noconvert(),
        py::arg("samples").noconvert(), py::arg("first").noconvert(), py::arg("length").noconvert(),
        py::arg("scale").noconvert(), py::arg("shift").noconvert(), py::arg("factor").noconvert(),
        py::arg("grad").noconvert(), py::arg("mean").noconvert(), py::arg("workers"));
}

}  // namespace

void bind_rows(py::module_& m) {
  bind_errors<float>(m);
  bind_errors<std::int16_t>(m);
  m.def("pick_rows", &run_pick, py::arg("base").noconvert(), py::arg("from_").noconvert(),
        py::arg("more").noconvert(), py::arg("and_from").noconvert(), py::arg("out").noconvert(),
        py::arg("workers"));
  m.def("sum_rows", &run_sum, py::arg("rows").noconvert(), py::arg("numbers").noconvert(),
        py::arg("out").noconvert(), py::arg("workers"));
}

}  // namespace bindings
}  // namespace physiofast
