// Input gradients as the ERF ops on CUDA devices take them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace cba {

// A tensor (N,C,H,W) in device memory; strides in elements.
struct CudaGradients {
  const void* data;
  FloatType type;
  std::int64_t images, channels, height, width;
  std::int64_t stride_n, stride_c, stride_h, stride_w;
};

// A float64 tensor (H,W) in device memory that is written alongside.
struct CudaErfMap {
  double* data;
  std::int64_t stride_h, stride_w;
};

}  // namespace cba
