// Chooses the lengths of transforms and makes their tables, for the kernels of dft_axes_body.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dwconv_kernels.h"

namespace cba {

// The tables that an AxisPlan points into.
class Axis {
 public:
  // An axis of `size` samples that is convolved with `taps` taps. `flipped` turns the kernel. With
  // `reduce` the taps are the output, and x and grad the inputs; nothing is turned then.
  Axis(std::int64_t size, std::int64_t taps, bool flipped, bool reduce);
  Axis(const Axis&) = delete;
  Axis& operator=(const Axis&) = delete;

  const AxisPlan& plan() const { return plan_; }

 private:
  void make_dft_tables();
  // Puts sample i of a range of `count` samples at index sign * i + first of the transform.
  AxisRange range(std::int64_t begin, std::int64_t count, std::int64_t first, int sign);

  AxisPlan plan_{};
  std::vector<AxisTile> tiles_;
  std::vector<std::int32_t> position_, conjugate_, half_;
  std::vector<std::vector<std::int32_t>> samples_;
};

}  // namespace cba
