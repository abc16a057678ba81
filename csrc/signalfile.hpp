// Decoding of signal files: WFDB's, and the data records of EDF (format 16) and BDF (format 24).
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "convert.hpp"
#include "file.hpp"
#include "formats.hpp"
#include "source.hpp"
#include "span.hpp"

// The fuzzer takes a few bytes, so that its small files have many blocks.
#ifndef PHYSIOFAST_BLOCK_BYTES
#define PHYSIOFAST_BLOCK_BYTES 65536
#endif

namespace physiofast {

// A signal file as its header describes it: frames one after another from `byte_offset`; in a
// frame, the samples of each channel one after another. An EDF data record is such a frame.
struct SignalLayout {
  Format format;
  std::int64_t byte_offset;
  std::vector<std::int64_t> samples_per_frame;  // of each channel
  std::int64_t num_frames;
  std::vector<std::int32_t> initial_values;  // of each channel, or empty; format 8 counts from them
};

// Samples [first, first + count) of a channel and where they go. Their sum as stored, modulo 2^16,
// is added to `checksum`, unless that is null. With `past_caches`, what is converted is written
// so: for output that is larger than them.
template <class T>
struct Run {
  std::int64_t channel;
  std::int64_t first;
  std::int64_t count;
  T* out;
  std::uint16_t* checksum = nullptr;
  bool past_caches = false;
};

// Memory beyond the output: at most kReadMemory bytes per thread that has read, kept for its next
// read; some words per channel in each file and call, and in format 8 at most 257 sums per channel.
class SignalFile : public SampleSource {
 public:
  static constexpr std::int64_t kBlockBytes = PHYSIOFAST_BLOCK_BYTES;
  static constexpr std::int64_t kReadMemory = 9 * kBlockBytes;

  // Throws std::invalid_argument or BoundsError for a layout that cannot be, FileError when the
  // file is shorter than the layout says, filesystem_error when it cannot be opened.
  SignalFile(std::string path, SignalLayout layout);

  const std::string& path() const { return file_.path(); }
  const SignalLayout& layout() const { return layout_; }
  std::int64_t num_channels() const override;
  std::int64_t num_samples(std::int64_t channel) const override;
  bool fits_int16() const override { return !is_wide(layout_.format); }
  std::int64_t frame_width() const override { return picks_frames() ? width_ : 0; }
  void read_frames(std::int64_t first, std::int64_t count, const TakeFrames& take) const override;

  // Throws BoundsError, naming the run by `index`, unless the channel has these samples.
  void check_run(std::int64_t index, std::int64_t channel, std::int64_t first,
                 std::int64_t count) const;

  // Every read throws BoundsError for a channel or range that does not exist, FileError when the
  // file has become too short or holds a number that int16 does not; the output is then undefined.
  // int16 is refused for formats 24 and 32 by std::invalid_argument.
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
            std::int16_t* out, std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count,
            std::int32_t* out, std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count, float* out,
            std::int64_t stride) const override;
  void read(Span<const std::int64_t> channels, std::int64_t first, std::int64_t count, double* out,
            std::int64_t stride) const override;

  // The same for runs that may differ in rate and range; the stretch of the file that they span is
  // read once. T is int16, int32, float or double. With `calibrations`, one for each channel of the
  // file, T is float or double and values are physical: double divides by the gain, float
  // multiplies by its reciprocal, which was taken in double. `poll` is called now and then in what
  // may take seconds: format 8, which has to be read from its beginning.
  using Poll = std::function<void()>;
  template <class T>
  void read_runs(Span<const Run<T>> runs, Span<const Calibration> calibrations = {nullptr, 0},
                 const Poll& poll = {}) const;

 private:
  // Consecutive samples of the file, counted over all channels.
  struct Stretch {
    std::int64_t first;
    std::int64_t end;
  };
  // A stretch that has been read: `data` begins with sample `base`, at or before its first.
  struct Piece {
    Stretch stretch;
    const std::uint8_t* data;
    std::int64_t base;
  };
  // The parts of each frame that some runs need, and those runs.
  struct Section {
    std::int64_t begin;
    std::int64_t end;
    std::int64_t first_run;
    std::int64_t num_runs;
  };
  template <class T>
  struct Target {
    Run<T> run;
    const Calibration* calibration;  // null: numbers as stored
  };
  template <class T>
  using Targets = Span<const Target<T>>;

  void check_layout() const;
  template <class T>
  std::vector<Target<T>> targets(Span<const Run<T>> runs,
                                 Span<const Calibration> calibrations) const;
  template <class T>
  Stretch span_of(Targets<T> targets) const;
  template <class T>
  std::vector<Section> sections(std::vector<Target<T>>& targets) const;

  template <class T>
  void read_dense(Targets<T> targets, Stretch stretch) const;
  template <class T>
  void read_sections(Targets<T> targets, Stretch stretch,
                     const std::vector<Section>& sections) const;
  template <class T>
  void read_differences(Targets<T> targets, Stretch stretch, const Poll& poll) const;
  template <class T>
  void emit(const Piece& piece, Targets<T> targets) const;
  template <class Sample, class T>
  void emit_as(const Piece& piece, Targets<T> targets) const;
  template <class T>
  void emit_frames(const Piece& piece, Targets<T> targets) const;
  void convert_stretches(const Piece& piece, const Target<float>& target, std::int64_t first,
                         std::int64_t end) const;
  template <class Sample, class T>
  void convert(const Piece& piece, const Target<T>& target, std::int64_t first,
               std::int64_t end) const;
  template <class Value, class T>
  void put(const Value* values, std::int64_t count, const Target<T>& target,
           std::int64_t first) const;
  template <class Sample>
  void unpack(const Piece& piece, std::int64_t channel, std::int64_t first, std::int64_t count,
              typename Sample::Value* out) const;
  void check_fit(Span<const std::int32_t> values, std::int64_t channel, std::int64_t first) const;

  Piece load(Stretch stretch) const;
  Piece load_differences(Stretch stretch, std::vector<std::uint32_t>& sums) const;
  std::int64_t resume(std::int64_t position, std::vector<std::uint32_t>& sums) const;
  void remember(std::int64_t position, const std::vector<std::uint32_t>& sums) const;
  bool picks_frames() const;
  std::int64_t block_samples() const;
  std::int64_t samples_before(std::int64_t channel, std::int64_t position) const;
  std::int64_t position_of(std::int64_t channel, std::int64_t sample) const;

  InputFile file_;
  SignalLayout layout_;
  std::vector<std::int64_t> start_;  // of each channel within a frame
  std::int64_t width_ = 0;           // samples of a frame
  bool interleaved_ = true;          // one sample per channel and frame

  // Format 8: the sums before every `checkpoint_frames_`-th frame, as far as it has been read.
  std::int64_t checkpoint_frames_ = 1;
  mutable std::mutex checkpoints_lock_;
  mutable std::vector<std::vector<std::uint32_t>> checkpoints_;
};

// The checksum of a WFDB header: the sum of the samples modulo 2^16.
std::uint16_t checksum(Span<const std::int16_t> samples);
std::uint16_t checksum(Span<const std::int32_t> samples);

}  // namespace physiofast
