// The text of an EDF or BDF header. Format: https://www.edfplus.info/specs/edfplus.html
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace physiofast {

// The signal header of one member of a data record; texts are views of the header, without blanks
// at their ends.
struct EdfMember {
  std::string_view label;
  std::string_view unit;
  double gain = 1;  // digital steps per unit; not looked at for annotations, nor the baseline
  double baseline = 0;
  std::int64_t digital_min = 0;  // as the header has it, as is the maximum; 0 of annotations
  std::int64_t digital_max = 0;
  std::int64_t samples_per_record = 0;
  bool is_annotation = false;
  std::string unusable;  // the ranges that no physical values follow from; else empty
};

struct EdfHeader {
  std::string_view patient;
  std::string_view recording;
  std::string_view start;  // as it stands: dd.mm.yyhh.mm.ss
  bool is_bdf = false;
  bool is_discontinuous = false;  // as the header has it
  double record_duration_s = 0;
  std::int64_t stated_records = 0;  // -1 where the header states none
  std::int64_t num_records = 0;     // whole ones in the file
  std::int64_t rest_bytes = 0;      // after them
  std::int64_t data_offset = 0;
  std::vector<EdfMember> members;
};

// `text` is the begin of a file of `file_size` bytes, at least its header; what it returns refers
// to it. Memory: at most one byte for each of `text`, whatever that says. Throws FileError, with
// `path`, at the first field that cannot be.
EdfHeader parse_edf_header(std::string_view text, std::int64_t file_size, const std::string& path);

}  // namespace physiofast
