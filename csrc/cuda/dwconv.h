// Depthwise convolution with zero "same" padding and its two gradients on CUDA devices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace cba {

// The sizes below have been checked: images and channels may be none, a plane is not empty, sides
// are at most 2^30, those of a kernel odd and at most 63.

// A tensor (N,C,H,W) in device memory whose columns lie side by side; strides in elements.
struct CudaImages {
  void* data;
  std::int64_t stride_n, stride_c, stride_h;
};

// y = conv(x, kernel) + bias. `turned`: the kernel is turned by 180 degrees, which makes it the
// input gradient of y = x.
struct CudaConvParams {
  CudaImages x, y;
  const void* kernel;  // [C, KH, KW], contiguous
  const void* bias;    // [C], or null
  DType type;      // of all of them
  std::int64_t images, channels, height, width;
  int kernel_height, kernel_width;
  bool turned;
  int device;
  cudaStream_t stream;
};

// The weight gradient, in two steps with one order of additions: `splits` parts of the batch, each
// into partial sums of its own, and their sum.
struct CudaConvWeightParams {
  CudaImages grad, x;
  void* kernel;     // [C, KH, KW], contiguous, written
  float* partials;  // [splits, C, KH, KW], scratch; null with one split where that needs none
  int splits;
  DType type;  // of grad, x and kernel
  std::int64_t images, channels, height, width;
  int kernel_height, kernel_width;
  int device;
  cudaStream_t stream;
};

}  // namespace cba
