// Input gradients and ERF maps as the ERF ops take them, on CPUs and GPUs. No C++ library header
// may be included here, see csrc/README.md.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace cba {

// A tensor (N,C,H,W) of floating type with fewer than 2^31 pixels; strides in elements.
struct Gradients {
  const void* data;
  DType type;
  int64_t images, channels, height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// The map that gradients are added to, a float64 tensor (H,W); strides in elements.
struct ErfMap {
  double* data;
  int64_t stride_h, stride_w;
};

// What a gradient x adds to the map: max(x, 0), |x| or x * x.
enum class ErfMode : int { kRelu, kAbs, kSquare };
constexpr int kErfModes = 3;

}  // namespace cba
