// Plans, in Python.
#include <string>

#include "bindings.hpp"
#include "philox.hpp"
#include "plan.hpp"

namespace physiofast {
namespace bindings {
namespace {

using Integers = Dense<std::int32_t>;

template <class T>
const T* input(const Dense<T>& x, std::int64_t rows, std::int64_t columns, const char* name) {
  require(x.ndim() == 2 && x.shape(0) == rows && x.shape(1) == columns, name);
  return x.data();
}

template <class T>
const T* input(const Dense<T>& x, std::int64_t size, const char* name) {
  require(x.ndim() == 1 && x.size() == size, name);
  return x.data();
}

// The arrays of one packing, in the order of `ops.Packing`.
struct Arrays {
  Integers ids, cu_seqlens, modality;
  Dense<float> seconds;
  Integers slot, by_modality, cu_modality;
};

template <class T>
T* output(Dense<T>& x, std::int64_t size, const char* name) {
  require(x.size() == size, name);
  return x.mutable_data();
}

PackingOut packing_of(Arrays& arrays, const PlanJob& job) {
  const std::int64_t places = arrays.ids.size();
  return {places,
          arrays.ids.mutable_data(),
          output(arrays.cu_seqlens, job.windows + 1, "cu_seqlens"),
          output(arrays.modality, places, "modality"),
          output(arrays.seconds, places, "seconds"),
          output(arrays.slot, job.windows * job.tokens, "slot"),
          output(arrays.by_modality, places, "by_modality"),
          output(arrays.cu_modality, job.kinds + 1, "cu_modality")};
}

void run_plan(const Dense<std::int64_t>& quotas, const Dense<bool>& valid,
              const Dense<std::int64_t>& window_id, std::int64_t seed, std::int64_t step,
              const Integers& modality, const Dense<float>& seconds, Arrays& visible,
              Arrays& hidden, Arrays& present, Workers workers) {
  require(valid.ndim() == 2 && quotas.ndim() == 2, "valid or quotas");
  const std::int64_t windows = valid.shape(0), tokens = valid.shape(1), kinds = quotas.shape(1);
  const PlanJob job{windows,
                    tokens,
                    kinds,
                    input(quotas, windows, kinds, "quotas"),
                    valid.data(),
                    input(window_id, windows, "window_id"),
                    seed,
                    step,
                    input(modality, tokens, "modality"),
                    input(seconds, tokens, "seconds")};
  const PackingOut out[kPackings] = {packing_of(visible, job), packing_of(hidden, job),
                                     packing_of(present, job)};
  run_released([&](const auto& stop) { sample_plan(job, out, workers, stop); });
}

// out [domains, windows, count], a multiple of four.
void run_words(std::int64_t seed, std::int64_t step, const Dense<std::int64_t>& window_id,
               const Dense<std::int64_t>& domains, Dense<std::uint32_t>& out) {
  require(out.ndim() == 3 && out.shape(0) == domains.size() && out.shape(1) == window_id.size() &&
              out.shape(2) % 4 == 0,
          "out");
  std::uint32_t* words = out.mutable_data();
  for (py::ssize_t i = 0; i < domains.size(); ++i) {
    for (py::ssize_t b = 0; b < window_id.size(); ++b, words += out.shape(2)) {
      window_words(seed, step, window_id.data()[b], domains.data()[i], out.shape(2) / 4, words);
    }
  }
}

}  // namespace

void bind_plan(py::module_& m) {
  py::class_<Arrays>(m, "PackingArrays")
      .def(py::init<Integers, Integers, Integers, Dense<float>, Integers, Integers, Integers>(),
           py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::arg("modality").noconvert(), py::arg("seconds").noconvert(),
           py::arg("slot").noconvert(), py::arg("by_modality").noconvert(),
           py::arg("cu_modality").noconvert());
  m.def("sample_plan", &run_plan, py::arg("quotas").noconvert(), py::arg("valid").noconvert(),
        py::arg("window_id").noconvert(), py::arg("seed"), py::arg("step"),
        py::arg("modality").noconvert(), py::arg("seconds").noconvert(), py::arg("visible"),
        py::arg("hidden"), py::arg("present"), py::arg("workers"));
  m.def("random_words", &run_words, py::arg("seed"), py::arg("step"),
        py::arg("window_id").noconvert(), py::arg("domains").noconvert(),
        py::arg("out").noconvert());
}

}  // namespace bindings
}  // namespace physiofast
