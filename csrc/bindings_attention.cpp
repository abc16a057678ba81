// Attention over packed windows, in Python.
#include <string>

#include "attention.hpp"
#include "bindings.hpp"

namespace physiofast {
namespace bindings {
namespace {

using Floats = py::array_t<float, 0>;
using Integers = Dense<std::int32_t>;
using Seconds = Dense<float>;
using Flags = Dense<std::uint8_t>;

// [T, H, Dh] whose heads lie side by side.
Features<const float> features(const Floats& x, std::int64_t places, std::int64_t heads,
                               std::int64_t width, const char* name) {
  const auto size = static_cast<py::ssize_t>(sizeof(float));
  require(x.ndim() == 3 && x.shape(0) == places && x.shape(1) == heads && x.shape(2) == width,
          name);
  require(x.size() == 0 ||
              (x.strides(2) == size && x.strides(1) == width * size && x.strides(0) % size == 0),
          name);
  return {x.data(), x.size() == 0 ? 0 : x.strides(0) / size};
}

Features<float> gradient(Floats& x, const AttentionJob& job, const AttentionTokens& side,
                         const char* name) {
  const auto found = features(x, side.places, job.heads, job.width, name);
  return {x.mutable_data(), found.stride};
}

template <class Array>
float* output(Array& x, py::ssize_t size, const char* name) {
  require(x.size() == size && (x.flags() & py::array::c_style) != 0, name);
  return x.mutable_data();
}

// Both sides' tokens, and the bias, mask and decay that they share.
struct Sides {
  Integers ends_q, ends_k, modality_q, modality_k;
  Seconds seconds_q, seconds_k, bias;
  Flags allowed;
  Seconds decay;  // of size 0: none
  float scale;
};

AttentionTokens tokens(const Integers& ends, const Integers& modality, const Seconds& seconds,
                       const char* name) {
  require(ends.ndim() == 1 && ends.size() > 0 && modality.size() == seconds.size(), name);
  const std::int64_t first = ends.data()[0], last = ends.data()[ends.size() - 1];
  if (first < 0 || last > modality.size()) {
    throw py::value_error(std::string(name) + ".cu_seqlens: expected ends within the packing's " +
                          std::to_string(modality.size()) + " places, found " +
                          std::to_string(first) + " to " + std::to_string(last));
  }
  return {{ends.data(), ends.size()}, modality.data(), seconds.data(), modality.size()};
}

AttentionJob job_of(const Floats& q, const Floats& k, const Floats& v, const Sides& sides) {
  require(q.ndim() == 3 && sides.bias.ndim() == 3, "q or pair_bias");
  const std::int64_t heads = q.shape(1), width = q.shape(2), kinds = sides.bias.shape(2);
  require(sides.ends_q.size() == sides.ends_k.size(), "cu_seqlens");
  require(sides.bias.shape(0) == heads && sides.bias.shape(1) == kinds, "pair_bias");
  require(sides.allowed.size() == kinds * kinds, "allowed");
  require(sides.decay.size() == heads || sides.decay.size() == 0, "time_decay");
  AttentionJob job{};
  job.queries = tokens(sides.ends_q, sides.modality_q, sides.seconds_q, "packing_q");
  job.keys = tokens(sides.ends_k, sides.modality_k, sides.seconds_k, "packing_k");
  job.heads = heads;
  job.width = width;
  job.kinds = kinds;
  job.bias = sides.bias.data();
  job.allowed = sides.allowed.data();
  job.decay = sides.decay.size() == 0 ? nullptr : sides.decay.data();
  job.scale = sides.scale;
  job.q = features(q, job.queries.places, heads, width, "q");
  job.k = features(k, job.keys.places, heads, width, "k");
  job.v = features(v, job.keys.places, heads, width, "v");
  return job;
}

void run_attend(const Floats& q, const Floats& k, const Floats& v, const Sides& sides, Floats& out,
                Floats& lse, Workers workers) {
  const AttentionJob job = job_of(q, k, v, sides);
  float* to = output(out, q.size(), "out");
  float* sums = output(lse, job.heads * job.queries.places, "lse");
  run_released([&](const auto& stop) { attend(job, to, sums, workers, stop); });
}

void run_backward(const Floats& grad, const Floats& q, const Floats& k, const Floats& v,
                  const Floats& lse, const Sides& sides, Floats& dq, Floats& dk, Floats& dv,
                  Floats& dbias, Floats& ddecay, Workers workers) {
  const AttentionJob job = job_of(q, k, v, sides);
  const auto slope = features(grad, job.queries.places, job.heads, job.width, "grad");
  require(lse.size() == job.heads * job.queries.places && (lse.flags() & py::array::c_style) != 0,
          "lse");
  const AttentionGradients gradients{
      gradient(dq, job, job.queries, "dq"), gradient(dk, job, job.keys, "dk"),
      gradient(dv, job, job.keys, "dv"), output(dbias, sides.bias.size(), "dbias"),
      output(ddecay, job.heads, "ddecay")};
  const float* sums = lse.data();
  run_released(
      [&](const auto& stop) { attend_backward(job, slope, sums, gradients, workers, stop); });
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<Sides>(m, "AttentionSides")
      .def(py::init<Integers, Integers, Integers, Integers, Seconds, Seconds, Seconds, Flags,
                    Seconds, float>());
  m.def("attend", &run_attend, py::arg("q").noconvert(), py::arg("k").noconvert(),
        py::arg("v").noconvert(), py::arg("sides"), py::arg("out").noconvert(),
        py::arg("lse").noconvert(), py::arg("workers"));
  m.def("attend_backward", &run_backward, py::arg("grad").noconvert(), py::arg("q").noconvert(),
        py::arg("k").noconvert(), py::arg("v").noconvert(), py::arg("lse").noconvert(),
        py::arg("sides"), py::arg("dq").noconvert(), py::arg("dk").noconvert(),
        py::arg("dv").noconvert(), py::arg("dbias").noconvert(), py::arg("ddecay").noconvert(),
        py::arg("workers"));
}

}  // namespace bindings
}  // namespace physiofast
