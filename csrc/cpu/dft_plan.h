// Lengths and tables of the transforms, for the kernels of dft_axes_body.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dwconv_kernels.h"

namespace cba {

// The tables that an AxisPlan points into.
class Axis {
 public:
  // An axis of `size` samples that is convolved with `taps` taps. `flipped`: the kernel is turned.
  // `reduce`: the taps are the output, x and grad the inputs; they are never turned.
  Axis(std::int64_t size, std::int64_t taps, bool flipped, bool reduce);
  Axis(const Axis&) = delete;
  Axis& operator=(const Axis&) = delete;

  const AxisPlan& plan() const { return plan_; }

 private:
  void make_dft_tables();
  // Places sample i of a range of `count` at index sign * i + first of the transform.
  AxisRange range(std::int64_t begin, std::int64_t count, std::int64_t first, int sign);

  AxisPlan plan_{};
  std::vector<AxisTile> tiles_;
  std::vector<std::int32_t> position_, conjugate_, half_;
  std::vector<std::vector<std::int32_t>> samples_;
};

}  // namespace cba
