// Sample sources, filters and flags for Python.
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "condition.hpp"
#include "flags.hpp"
#include "kernels.hpp"
#include "polyphase.hpp"
#include "source.hpp"

namespace physiofast {
namespace bindings {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Shorts = py::array_t<std::int16_t, py::array::c_style>;
using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

template <class Array>
auto view(const Array& array) {
  return Span<const typename Array::value_type>{array.data(), array.size()};
}

template <class Array>
auto copied(const Array& array) {
  return std::vector<typename Array::value_type>(array.data(), array.data() + array.size());
}

// The array itself, never a converted copy, whose memory nobody would own.
template <class Array>
Array exactly(const py::handle& item, const char* name) {
  if (!py::isinstance<Array>(item)) {
    throw py::value_error(std::string(name) + " has another type, or is not C-contiguous");
  }
  return py::reinterpret_borrow<Array>(item);
}

// The rows of one array [C, n].
template <class T>
std::shared_ptr<SampleSource> rows_of(const py::array& array) {
  const auto width = static_cast<py::ssize_t>(sizeof(T));
  std::vector<const T*> rows;
  for (py::ssize_t c = 0; c < array.shape(0); ++c) {
    rows.push_back(static_cast<const T*>(array.data()) + c * (array.strides(0) / width));
  }
  return std::make_shared<ArraySource<T>>(std::move(rows), array.shape(1),
                                          array.strides(1) / width);
}

// Arrays [n], all of one type and length.
template <class T>
std::shared_ptr<SampleSource> planes_of(const py::sequence& arrays, py::ssize_t size) {
  std::vector<const T*> planes;
  for (const auto& item : arrays) {
    const auto plane = exactly<py::array_t<T, py::array::c_style>>(item, "planes");
    if (plane.ndim() != 1 || plane.size() != size) throw py::value_error("planes differ in size");
    planes.push_back(plane.data());
  }
  return std::make_shared<ArraySource<T>>(std::move(planes), size, 1);
}

// Calls make with a value of the array's type; engine.sources has checked alignment and order.
template <class Make>
std::shared_ptr<SampleSource> by_type(const py::array& array, Make make) {
  if (py::isinstance<py::array_t<std::int16_t>>(array)) return make(std::int16_t{});
  if (py::isinstance<py::array_t<std::int32_t>>(array)) return make(std::int32_t{});
  if (py::isinstance<py::array_t<float>>(array)) return make(float{});
  if (py::isinstance<py::array_t<double>>(array)) return make(double{});
  throw py::value_error("samples need int16, int32, float32 or float64");
}

std::shared_ptr<SampleSource> array_source(const py::array& array) {
  if (array.ndim() != 2) throw py::value_error("an array of samples needs 2 dimensions");
  return by_type(array, [&](auto zero) { return rows_of<decltype(zero)>(array); });
}

std::shared_ptr<SampleSource> planes_source(const py::tuple& arrays) {
  if (arrays.empty()) throw py::value_error("no planes");
  const auto first = py::cast<py::array>(arrays[0]);
  return by_type(first, [&](auto zero) { return planes_of<decltype(zero)>(arrays, first.size()); });
}

std::shared_ptr<Cascade> make_cascade(const Doubles& sections, const Doubles& steady,
                                      std::int64_t edge) {
  if (sections.size() % 6 != 0 || steady.size() * 3 != sections.size() || edge < 0) {
    throw py::value_error("sections need [S, 6], steady [S, 2] and edge 0 or more");
  }
  auto cascade = std::make_shared<Cascade>();
  cascade->sections = copied(sections);
  cascade->steady = copied(steady);
  cascade->edge = edge;
  return cascade;
}

// A job and what its channels point to.
class HeldJob {
 public:
  HeldJob(std::int64_t num_samples, std::int64_t block, std::int64_t run_in, bool extend) {
    if (block < 1 || run_in < 1) throw py::value_error("block and run_in need 1 or more");
    job_.num_samples = num_samples;
    job_.blocks = {block, run_in, 0};
    job_.extend = extend;
  }

  void add(std::int64_t source, double scale, double shift, std::shared_ptr<Cascade> cascade,
           std::shared_ptr<Polyphase> resampler, std::int64_t outputs, const Indices& gaps) {
    const std::int64_t most =
        resampler ? resampler->num_outputs(job_.num_samples) : job_.num_samples;
    if (outputs < 0 || outputs > most) {
      throw BoundsError("outputs of channel", source, "0 to " + std::to_string(most), outputs);
    }
    Channel channel{source, scale, shift, cascade.get(), resampler.get(), {}};
    for (py::ssize_t g = 0; g + 1 < gaps.size(); g += 2) {
      channel.bridges.push_back({gaps.data()[g], gaps.data()[g + 1], 0.0, 0.0});
    }
    job_.channels.push_back(std::move(channel));
    job_.outputs.push_back(outputs);
    job_.blocks.edge = std::max(job_.blocks.edge, cascade->edge);
    cascades_.push_back(std::move(cascade));
    resamplers_.push_back(std::move(resampler));
  }

  void run_float32(const SampleSource& source, Floats& out, std::int64_t length,
                   std::int64_t window_stride, int num_threads) const {
    check_room(out.size(), length, window_stride);
    FloatSink sink(out.mutable_data(), out.size(), length, window_stride);
    run_released([&](const auto& stop) { condition(source, job(), &sink, num_threads, stop); });
  }

  // planes[c] may be None: then only its range is found. Returns (low, high), float32 [C] each.
  py::tuple run_int16(const SampleSource& source, const py::sequence& planes, const Floats& lsb,
                      const Floats& shift, const py::sequence& keep, const Indices& patch,
                      int num_threads) const {
    constexpr float kNever = std::numeric_limits<float>::infinity();
    std::vector<Int16Sink::Plane> targets;
    for (std::size_t c = 0; c < job_.channels.size(); ++c) {
      const auto i = static_cast<py::ssize_t>(c);
      const auto kept = exactly<Bytes>(keep[c], "keep");
      Int16Sink::Plane target{nullptr,     lsb.at(i), shift.at(i), kept.data(),
                              patch.at(i), 0,         kNever,      -kNever};
      if (target.patch < 1) throw py::value_error("patch needs 1 sample or more");
      target.num_samples = kept.size() * target.patch;
      if (!planes[c].is_none()) {
        auto plane = exactly<Shorts>(planes[c], "planes");
        if (plane.size() < job_.outputs[c]) throw py::value_error("a plane is too short");
        target.out = plane.mutable_data();
      }
      targets.push_back(target);
    }
    Int16Sink sink(std::move(targets));
    run_released([&](const auto& stop) { condition(source, job(), &sink, num_threads, stop); });
    const auto channels = static_cast<py::ssize_t>(job_.channels.size());
    Floats low(channels), high(channels);
    for (py::ssize_t c = 0; c < channels; ++c) {
      low.mutable_at(c) = sink.planes()[static_cast<std::size_t>(c)].low;
      high.mutable_at(c) = sink.planes()[static_cast<std::size_t>(c)].high;
    }
    return py::make_tuple(low, high);
  }

 private:
  // With the blocks that suit the longest extension.
  Job job() const {
    Job job = job_;
    job.blocks.run_in += job.blocks.edge;
    return job;
  }

  void check_room(std::int64_t size, std::int64_t length, std::int64_t window_stride) const {
    if (length < 1 || window_stride < 1) throw py::value_error("length needs 1 sample or more");
    const auto channels = static_cast<std::int64_t>(job_.channels.size());
    for (const std::int64_t outputs : job_.outputs) {
      if (outputs == 0) continue;
      const std::int64_t last = (outputs - 1) / length * window_stride + channels * length;
      if (last > size) throw BoundsError("size of out", 0, std::to_string(last), size);
    }
  }

  Job job_;
  std::vector<std::shared_ptr<Cascade>> cascades_;
  std::vector<std::shared_ptr<Polyphase>> resamplers_;
};

void patch_extremes_into(const SampleSource& source, const Indices& channels, const Indices& edges,
                         const Indices& invalid, Ints& out, int num_threads) {
  const std::int64_t size = channels.size() * (edges.size() - 1);
  if (edges.size() < 1 || invalid.size() != channels.size() || out.size() != 4 * size) {
    throw py::value_error("out needs [4, C, P], invalid [C], edges [P + 1]");
  }
  std::int32_t* first = out.mutable_data();
  const PatchExtremes target{first, first + size, first + 2 * size, first + 3 * size};
  run_released([&](const auto& stop) {
    patch_extremes(source, view(channels), view(edges), view(invalid), target, num_threads, stop);
  });
}

// int64 [R, 4]: start, stop, value before, value after.
Indices find_equal_runs(const SampleSource& source, std::int64_t channel, std::int32_t value,
                        const Indices& first, const Indices& last, std::int64_t min_length) {
  if (first.size() != last.size()) throw py::value_error("first and last differ in size");
  std::vector<EqualRun> runs;
  run_released([&](const auto& stop) {
    const auto task = [&](std::int64_t, Watch& watch) {
      runs = equal_runs(source, channel, value, view(first), view(last), min_length, &watch);
    };
    parallel_for(1, 1, task, stop);
  });
  Indices out({static_cast<py::ssize_t>(runs.size()), py::ssize_t{4}});
  std::int64_t* row = out.mutable_data();
  for (const EqualRun& run : runs) {
    *row++ = run.start;
    *row++ = run.stop;
    *row++ = run.before;
    *row++ = run.after;
  }
  return out;
}

// Adds one plane after the other to its row of counts [C, 65536].
void histograms(const py::sequence& planes, const Indices& patch, const py::sequence& keep,
                Indices& counts, int num_threads) {
  const auto size = static_cast<std::int64_t>(planes.size());
  if (patch.size() != size || static_cast<std::int64_t>(keep.size()) != size ||
      counts.size() != size * 65536) {
    throw py::value_error("patch and keep need one entry a plane, counts [C, 65536]");
  }
  std::vector<Span<const std::int16_t>> samples;
  std::vector<Span<const std::uint8_t>> kept;
  for (std::size_t c = 0; c < planes.size(); ++c) {
    samples.push_back(view(exactly<Shorts>(planes[c], "planes")));
    kept.push_back(view(exactly<Bytes>(keep[c], "keep")));
    if (patch.at(static_cast<py::ssize_t>(c)) < 1) throw py::value_error("patch needs 1 or more");
  }
  std::int64_t* rows = counts.mutable_data();
  const std::int64_t* patches = patch.data();
  run_released([&](const auto& stop) {
    const auto task = [&](std::int64_t c, Watch& watch) {
      const auto at = static_cast<std::size_t>(c);
      histogram_i16(samples[at], patches[c], kept[at], rows + c * 65536, &watch);
    };
    parallel_for(num_threads, size, task, stop);
  });
}

}  // namespace

void bind_condition(py::module_& m) {
  py::class_<SampleSource, std::shared_ptr<SampleSource>>(m, "SampleSource");
  m.def("array_source", &array_source, py::arg("array").noconvert(), py::keep_alive<0, 1>());
  m.def("planes_source", &planes_source, py::arg("arrays"), py::keep_alive<0, 1>());
  py::class_<Cascade, std::shared_ptr<Cascade>>(m, "Cascade")
      .def(py::init(&make_cascade), py::arg("sections"), py::arg("steady"), py::arg("edge"));
  py::class_<Polyphase, std::shared_ptr<Polyphase>>(m, "Polyphase")
      .def(py::init([](std::int64_t up, std::int64_t down, const Doubles& taps) {
             return std::make_shared<Polyphase>(up, down, view(taps));
           }),
           py::arg("up"), py::arg("down"), py::arg("taps"));
  py::class_<HeldJob>(m, "ConditionJob")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, bool>(), py::arg("num_samples"),
           py::arg("block"), py::arg("run_in"), py::arg("extend"))
      .def("add", &HeldJob::add, py::arg("source"), py::arg("scale"), py::arg("shift"),
           py::arg("cascade"), py::arg("resampler"), py::arg("outputs"), py::arg("gaps"))
      .def("run_float32", &HeldJob::run_float32, py::arg("source"), py::arg("out").noconvert(),
           py::arg("length"), py::arg("window_stride"), py::arg("num_threads"))
      .def("run_int16", &HeldJob::run_int16, py::arg("source"), py::arg("planes"), py::arg("lsb"),
           py::arg("shift"), py::arg("keep"), py::arg("patch"), py::arg("num_threads"));
  m.def("patch_extremes", &patch_extremes_into, py::arg("source"), py::arg("channels"),
        py::arg("edges"), py::arg("invalid"), py::arg("out").noconvert(), py::arg("num_threads"));
  m.def("equal_runs", &find_equal_runs, py::arg("source"), py::arg("channel"), py::arg("value"),
        py::arg("first"), py::arg("last"), py::arg("min_length"));
  m.def("histograms", &histograms, py::arg("planes"), py::arg("patch"), py::arg("keep"),
        py::arg("counts").noconvert(), py::arg("num_threads"));
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("instruction_sets", [] {
    py::list names;
    for (const std::string& name : kernel_names()) names.append(name);
    return names;
  });
  m.def("set_instruction_set", &select_kernels, py::arg("name"));
}

}  // namespace bindings
}  // namespace physiofast
