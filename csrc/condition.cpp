#include "condition.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "aligned.hpp"
#include "lanereader.hpp"
#include "subnormals.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kStretch = 1024;  // samples of them that are handed on at once

// -- Resampling alone: every stretch of outputs is a task of its own -----------------------------

struct Stretch {
  std::vector<std::int64_t> channels;  // numbers in the job, all with one resampler
  std::int64_t first, count;           // outputs
};

struct Inputs;
struct Outputs;

// Numbers that float32 does not hold are scaled before they become float32.
void load_scaled(const SampleSource& source, const Job& job, Span<const std::int64_t> channels,
                 std::int64_t first, std::int64_t count, float* out, std::int64_t stride) {
  const bool exact = source.fits_float32();
  double* wide = exact ? nullptr : kept<Inputs, double>(channels.size * count);
  if (exact) {
    load(source, job, channels, first, count, out, stride);
  } else {
    load(source, job, channels, first, count, wide, count);
  }
  for (std::int64_t i = 0; i < channels.size; ++i) {
    const Channel& channel = job.channels[static_cast<std::size_t>(channels[i])];
    float* row = out + i * stride;
    if (!exact) {
      for (std::int64_t t = 0; t < count; ++t) {
        row[t] = static_cast<float>(wide[i * count + t] * channel.scale + channel.shift);
      }
    } else if (channel.scale != 1.0 || channel.shift != 0.0) {
      kernels().affine_f32(row, count, static_cast<float>(channel.scale),
                           static_cast<float>(channel.shift));
    }
  }
}

// Planes of inputs [begin, begin + size), of which those outside the signal are its extension.
const float* load_extended(const SampleSource& source, const Job& job,
                           Span<const std::int64_t> channels, std::int64_t begin,
                           std::int64_t size) {
  float* planes = kept<Inputs, float>(channels.size * size);
  const std::int64_t from = std::clamp<std::int64_t>(begin, 0, job.num_samples - 1);
  const std::int64_t to = std::clamp<std::int64_t>(begin + size, 1, job.num_samples);
  const std::int64_t inside = std::max<std::int64_t>(to - from, 1);
  const std::int64_t lead = std::clamp<std::int64_t>(from - begin, 0, size - 1);
  const std::int64_t end = lead + std::min(inside, size - lead);
  load_scaled(source, job, channels, from, end - lead, planes + lead, size);
  for (std::int64_t i = 0; i < channels.size; ++i) {
    float* row = planes + i * size;
    std::fill(row, row + lead, job.extend ? row[lead] : 0.0F);
    std::fill(row + end, row + size, job.extend ? row[end - 1] : 0.0F);
  }
  return planes;
}

void resample_stretch(const SampleSource& source, const Job& job, const Stretch& stretch,
                      Sink* sink, Watch* watch) {
  const Polyphase& filter = *job.channels[static_cast<std::size_t>(stretch.channels[0])].resampler;
  const std::int64_t begin = filter.first_input(stretch.first);
  const std::int64_t size = filter.last_input(stretch.first + stretch.count - 1) + 1 - begin;
  const Span<const std::int64_t> channels{stretch.channels.data(),
                                          static_cast<std::int64_t>(stretch.channels.size())};
  const float* planes = load_extended(source, job, channels, begin, size);
  float* y = kept<Outputs, float>(stretch.count);
  for (std::int64_t i = 0; i < channels.size; ++i) {
    filter.apply(planes + i * size, begin, stretch.first, stretch.count, y, watch);
    sink->put(channels[i], stretch.first, stretch.count, y);
  }
}

std::vector<Stretch> cut_into_stretches(const Job& job, std::vector<std::int64_t> pending) {
  std::vector<Stretch> stretches;
  while (!pending.empty()) {
    const auto index = static_cast<std::size_t>(pending[0]);
    const Polyphase* filter = job.channels[index].resampler;
    const std::int64_t outputs = job.outputs[index];
    std::vector<std::int64_t> group, others;
    for (const std::int64_t number : pending) {
      const auto at = static_cast<std::size_t>(number);
      const bool same = job.channels[at].resampler == filter && job.outputs[at] == outputs;
      (same && static_cast<std::int64_t>(group.size()) < kGroup ? group : others).push_back(number);
    }
    for (std::int64_t first = 0; first < outputs; first += filter->tile()) {
      stretches.push_back({group, first, std::min(filter->tile(), outputs - first)});
    }
    pending = others;
  }
  return stretches;
}

// -- Filtering, then resampling: channels side by side, each from its beginning to its end --------

// Feeds one channel's filtered samples to its resampler and the sink.
class Outlet {
 public:
  Outlet(const Job& job, std::int64_t number, Sink* sink)
      : job_(job),
        number_(number),
        outputs_(job.outputs[static_cast<std::size_t>(number)]),
        filter_(job.channels[static_cast<std::size_t>(number)].resampler),
        sink_(sink) {}

  // Where the next `count` samples are to be written.
  float* grow(std::int64_t count) {
    if (filter_ != nullptr && next_ == 0 && size_ == 0) {
      base_ = filter_->first_input(0);
      lead_ = -base_;
      size_ = lead_;
    }
    if (static_cast<std::size_t>(size_ + count) > x_.size()) {
      x_.resize(static_cast<std::size_t>(size_ + count));
    }
    size_ += count;
    return x_.data() + size_ - count;
  }

  // Hands over what can be computed; with `last`, everything.
  void drain(bool last, Watch* watch) {
    if (filter_ == nullptr) {
      const std::int64_t count = std::min(size_, outputs_ - next_);
      if (count > 0) sink_->put(number_, next_, count, x_.data());
      next_ += size_;
      size_ = 0;
      return;
    }
    if (lead_ > 0) {
      std::fill(x_.begin(), x_.begin() + lead_,
                job_.extend ? x_[static_cast<std::size_t>(lead_)] : 0.0F);
      lead_ = 0;
    }
    if (last) extend_end();
    while (next_ < outputs_) {
      const std::int64_t count = std::min(filter_->tile(), outputs_ - next_);
      if (filter_->last_input(next_ + count - 1) >= base_ + size_) break;
      y_.resize(static_cast<std::size_t>(filter_->tile()));
      filter_->apply(x_.data(), base_, next_, count, y_.data(), watch);
      sink_->put(number_, next_, count, y_.data());
      next_ += count;
    }
    const std::int64_t needed = next_ < outputs_ ? filter_->first_input(next_) - base_ : size_;
    const std::int64_t drop = std::clamp<std::int64_t>(needed, 0, size_);
    std::copy(x_.begin() + drop, x_.begin() + size_, x_.begin());
    base_ += drop;
    size_ -= drop;
  }

 private:
  void extend_end() {
    if (outputs_ == 0) return;
    const std::int64_t missing = filter_->last_input(outputs_ - 1) + 1 - (base_ + size_);
    if (missing <= 0) return;
    const float end = job_.extend ? x_[static_cast<std::size_t>(size_ - 1)] : 0.0F;
    float* more = grow(missing);
    std::fill(more, more + missing, end);
  }

  const Job& job_;
  std::int64_t number_, outputs_;
  const Polyphase* filter_;
  Sink* sink_;
  Buffer<float> x_, y_;
  std::int64_t base_ = 0, size_ = 0, lead_ = 0;  // x_ holds samples [base_, base_ + size_)
  std::int64_t next_ = 0;                        // output
};

void filter_lanes(const SampleSource& source, const Job& job,
                  const std::vector<std::int64_t>& lanes, Sink* sink, Watch* watch) {
  const Subnormals flushed(false);
  std::vector<const Cascade*> cascades;
  std::vector<Outlet> outlets;
  for (const std::int64_t number : lanes) {
    cascades.push_back(job.channels[static_cast<std::size_t>(number)].cascade);
    outlets.emplace_back(job, number, sink);
  }
  std::vector<CascadeBank> banks;
  for (std::size_t l = 0; l < lanes.size(); l += kDoubleLanes) {
    banks.emplace_back(cascades.data() + l, std::min<std::size_t>(kDoubleLanes, lanes.size() - l));
  }
  const auto take = [&](std::int64_t first, std::int64_t count, double* const* rows_of_bank) {
    for (std::int64_t begin = 0; begin < count; begin += kStretch) {
      watch->poll();
      const std::int64_t here = std::min(kStretch, count - begin);
      for (std::size_t l = 0; l < outlets.size(); l += kDoubleLanes) {
        const std::size_t used = std::min<std::size_t>(kDoubleLanes, outlets.size() - l);
        float* planes[kDoubleLanes];
        for (std::size_t i = 0; i < used; ++i) planes[i] = outlets[l + i].grow(here);
        kernels().narrow_to_planes(rows_of_bank[l / kDoubleLanes] + begin * kDoubleLanes, here,
                                   static_cast<int>(used), planes);
      }
      if (begin % (8 * kStretch) == 0) {
        for (Outlet& outlet : outlets) outlet.drain(false, watch);
      }
    }
    const bool last = first + count == job.num_samples;
    for (Outlet& outlet : outlets) outlet.drain(last, watch);
  };
  if (source.fits_float32()) {
    LaneReader<float> reader(source, job, lanes);
    zero_phase(&banks, job.num_samples, job.blocks, std::ref(reader), take, watch);
  } else {
    LaneReader<double> reader(source, job, lanes);
    zero_phase(&banks, job.num_samples, job.blocks, std::ref(reader), take, watch);
  }
}

// As many groups as threads where there are channels enough, and of sizes as equal as can be.
std::vector<std::vector<std::int64_t>> share_out(const std::vector<std::int64_t>& numbers,
                                                 int num_threads) {
  const auto size = static_cast<std::int64_t>(numbers.size());
  const std::int64_t least = (size + kGroup - 1) / kGroup;
  const std::int64_t groups = std::max(least, std::min<std::int64_t>(num_threads, size));
  std::vector<std::vector<std::int64_t>> shared(static_cast<std::size_t>(groups));
  for (std::int64_t i = 0; i < size; ++i) {
    shared[static_cast<std::size_t>(i * groups / size)].push_back(
        numbers[static_cast<std::size_t>(i)]);
  }
  return shared;
}

void check(const SampleSource& source, const Job& job) {
  for (const Channel& channel : job.channels) {
    if (channel.cascade->edge >= job.num_samples || channel.cascade->edge > job.blocks.edge) {
      throw BoundsError("edge of channel", channel.source,
                        "less than the " + std::to_string(job.num_samples) + " samples",
                        channel.cascade->edge);
    }
    check_read(source, {&channel.source, 1}, 0, job.num_samples);
    std::int64_t end = -1;
    for (const Bridge& gap : channel.bridges) {
      if (gap.start <= end || gap.start < 0 || gap.stop <= gap.start ||
          gap.stop > job.num_samples) {
        throw BoundsError("gaps of channel", channel.source,
                          "stretches in order, apart from each other, within 0 to " +
                              std::to_string(job.num_samples),
                          gap.start);
      }
      end = gap.stop;
    }
  }
}

// At the ends of the signal a bridge has one neighbour, whose value it keeps.
void look_up_neighbours(const SampleSource& source, std::int64_t num_samples, Channel* channel) {
  const auto sample = [&](std::int64_t at) {
    double value = 0;
    source.read({&channel->source, 1}, at, 1, &value, 1);
    return value;
  };
  for (Bridge& gap : channel->bridges) {
    const bool starts = gap.start == 0, ends = gap.stop == num_samples;
    gap.before = starts ? (ends ? 0.0 : sample(gap.stop)) : sample(gap.start - 1);
    gap.after = ends ? gap.before : sample(gap.stop);
  }
}

}  // namespace

void FloatSink::put(std::int64_t channel, std::int64_t first, std::int64_t count, float* y) {
  while (count > 0) {
    const std::int64_t window = first / length_, at = first % length_;
    const std::int64_t here = std::min(count, length_ - at);
    float* target = out_ + window * window_stride_ + channel * length_ + at;
    const auto bytes = static_cast<std::int64_t>(sizeof(float)) * here;
    if (stream_) {
      kernels().stream_bytes(target, y, bytes);
    } else {
      std::memcpy(target, y, static_cast<std::size_t>(bytes));
    }
    first += here;
    y += here;
    count -= here;
  }
  if (stream_) stream_end();
}

void Int16Sink::put(std::int64_t channel, std::int64_t first, std::int64_t count, float* y) {
  Plane& plane = planes_[static_cast<std::size_t>(channel)];
  float low = std::numeric_limits<float>::infinity(), high = -low;
  const std::int64_t told = std::min(first + count, plane.num_samples / plane.patch * plane.patch);
  for (std::int64_t at = first; at < told;) {
    std::int64_t patch = at / plane.patch, end = at;
    while (end < told && plane.keep[patch] != 0) end = std::min(told, ++patch * plane.patch);
    if (end > at) kernels().range_f32(y + (at - first), end - at, &low, &high);
    at = std::max(end, (patch + 1) * plane.patch);
  }
  if (plane.out != nullptr) {
    kernels().quantise(y, count, plane.shift, 1.0F / plane.lsb, plane.out + first);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  plane.low = std::min(plane.low, low);
  plane.high = std::max(plane.high, high);
}

void condition(const SampleSource& source, Job job, Sink* sink, int num_threads,
               const StopQuery& stop) {
  if (job.num_samples == 0) return;
  check(source, job);
  for (Channel& channel : job.channels) look_up_neighbours(source, job.num_samples, &channel);
  std::vector<std::int64_t> filtered, resampled;
  for (std::size_t c = 0; c < job.channels.size(); ++c) {
    const bool filters = job.channels[c].cascade->size() > 0 || !job.channels[c].resampler;
    (filters ? filtered : resampled).push_back(static_cast<std::int64_t>(c));
  }
  const auto groups = filtered.empty() ? std::vector<std::vector<std::int64_t>>{}
                                       : share_out(filtered, num_threads);
  const auto stretches = cut_into_stretches(job, resampled);
  const auto num_groups = static_cast<std::int64_t>(groups.size());
  const auto num_tasks = num_groups + static_cast<std::int64_t>(stretches.size());
  const auto task = [&](std::int64_t i, Watch& watch) {
    watch.poll();
    if (i < num_groups) {
      filter_lanes(source, job, groups[static_cast<std::size_t>(i)], sink, &watch);
    } else {
      resample_stretch(source, job, stretches[static_cast<std::size_t>(i - num_groups)], sink,
                       &watch);
    }
  };
  parallel_for(num_threads, num_tasks, task, stop);
}

}  // namespace physiofast
