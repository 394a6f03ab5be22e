// Cuts input gradients into runs of pixels, in which kernels read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/erf_kernels.h"
#include "cpu/isa.h"

namespace cba {

// All pixels of a map, cut into runs along the axis with the smaller stride. Where rows follow each
// other in memory, the whole map is one row.
class Runs {
 public:
  explicit Runs(const Gradients& grad, const ErfMap& map = {nullptr, 0, 0});

  std::int64_t size() const { return grad_.height * per_row_; }
  PixelRun run(std::int64_t image, std::int64_t index) const;
  double* in_map(std::int64_t index) const {
    return map_.data + y(index) * map_.stride_h + x(index) * map_.stride_w;
  }
  std::int64_t map_stride() const { return map_.stride_w; }

 private:
  std::int64_t y(std::int64_t index) const { return index / per_row_; }
  std::int64_t x(std::int64_t index) const { return index % per_row_ * kRun; }

  Gradients grad_;  // transposed or flattened, like `map_`
  ErfMap map_;
  std::int64_t per_row_;
};

}  // namespace cba
