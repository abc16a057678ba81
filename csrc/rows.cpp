#include "rows.hpp"

#include "stretches.hpp"

namespace physiofast {

void pick_rows(const PickJob& job, float* out, Workers workers, const StopQuery& stop) {
  const RowWriter writer(job.count, job.width);
  const std::int64_t work = job.count * job.width;
  for_stretches(job.count, job.width, work, workers, stop,
                [&](std::int64_t first, std::int64_t last) {
                  for (std::int64_t i = first; i < last; ++i) {
                    const std::int64_t from = job.from(i, job.rows.count);
                    const float* onto = job.onto.data == nullptr ? nullptr : job.onto[i];
                    float* row = out + i * job.width;
                    if (from < 0) {
                      onto == nullptr ? writer.zero(row) : writer.copy(onto, row);
                    } else if (onto == nullptr) {
                      writer.copy(job.rows[from], row);
                    } else {
                      writer.sum(onto, job.rows[from], row);
                    }
                  }
                  stream_end();
                });
}

}  // namespace physiofast
