// What a signal file may be and what may be asked of it; reading is in signalfile.cpp.
#include <stdexcept>
#include <string>
#include <utility>

#include "signalfile.hpp"

namespace physiofast {
namespace {

constexpr std::int64_t kCheckpoints = 256;
// Far from overflow in bytes, whatever the format.
constexpr std::int64_t kMaxSamples = std::int64_t{1} << 60;

}  // namespace

SignalFile::SignalFile(std::string path, SignalLayout layout)
    : file_(std::move(path)), layout_(std::move(layout)) {
  check_layout();
  start_.reserve(layout_.samples_per_frame.size());
  for (const std::int64_t samples : layout_.samples_per_frame) {
    start_.push_back(width_);
    width_ += samples;
    interleaved_ = interleaved_ && samples == 1;
  }
  const std::int64_t needed =
      layout_.byte_offset + num_bytes(layout_.format, layout_.num_frames * width_);
  const std::int64_t found = file_.size();
  if (found < needed) {
    throw FileError(file_.path(), found,
                    std::to_string(needed) + " bytes (" + std::to_string(layout_.num_frames) +
                        " frames of " + std::to_string(width_) + " samples in format " +
                        std::to_string(static_cast<int>(layout_.format)) + " from byte " +
                        std::to_string(layout_.byte_offset) + ")",
                    std::to_string(found) + " bytes");
  }
  if (layout_.format != Format::k8) return;
  layout_.initial_values.resize(layout_.samples_per_frame.size());
  checkpoint_frames_ = layout_.num_frames / kCheckpoints + 1;
  checkpoints_.emplace_back(layout_.initial_values.begin(), layout_.initial_values.end());
}

void SignalFile::check_layout() const {
  const std::vector<std::int64_t>& counts = layout_.samples_per_frame;
  if (counts.empty()) {
    throw std::invalid_argument(path() +
                                ": samples_per_frame: expected 1 channel or more, found none");
  }
  if (!layout_.initial_values.empty() && layout_.initial_values.size() != counts.size()) {
    throw std::invalid_argument(path() + ": initial_values: expected one for each of " +
                                std::to_string(counts.size()) + " channels, found " +
                                std::to_string(layout_.initial_values.size()));
  }
  std::int64_t width = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] < 1 || counts[i] > kMaxSamples - width) {
      throw BoundsError(path() + ": samples_per_frame of channel", static_cast<std::int64_t>(i),
                        "1 to " + std::to_string(kMaxSamples - width), counts[i]);
    }
    width += counts[i];
  }
  if (layout_.num_frames < 0 || layout_.num_frames > kMaxSamples / width) {
    throw BoundsError(path() + ": num_frames for a width of", width,
                      "0 to " + std::to_string(kMaxSamples / width), layout_.num_frames);
  }
  if (layout_.byte_offset < 0 || layout_.byte_offset > kMaxSamples) {
    throw BoundsError(path() + ": byte_offset of format", static_cast<int>(layout_.format),
                      "0 to " + std::to_string(kMaxSamples), layout_.byte_offset);
  }
}

std::int64_t SignalFile::num_channels() const {
  return static_cast<std::int64_t>(layout_.samples_per_frame.size());
}

std::int64_t SignalFile::num_samples(std::int64_t channel) const {
  if (channel < 0 || channel >= num_channels()) {
    throw BoundsError(path() + ": channel", channel, "0 to " + std::to_string(num_channels() - 1),
                      channel);
  }
  return layout_.samples_per_frame[static_cast<std::size_t>(channel)] * layout_.num_frames;
}

void SignalFile::check_run(std::int64_t index, std::int64_t channel, std::int64_t first,
                           std::int64_t count) const {
  if (channel < 0 || channel >= num_channels()) {
    throw BoundsError(path() + ": channels", index, "0 to " + std::to_string(num_channels() - 1),
                      channel);
  }
  const std::int64_t total = num_samples(channel);
  if (first < 0 || first > total) {
    throw BoundsError(path() + ": first sample of channels", index, "0 to " + std::to_string(total),
                      first);
  }
  if (count < 0 || count > total - first) {
    throw BoundsError(
        path() + ": number of samples of channels", index,
        "0 to " + std::to_string(total - first) + " from sample " + std::to_string(first), count);
  }
}

}  // namespace physiofast
