// The parameters of the depthwise convolution with zero "same" padding and of its two gradients on
// CUDA devices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace cba {

// The bindings have checked the sizes below: there may be no images or channels, a plane is not
// empty, its sides are at most 2^30, and those of a kernel are odd and at most 63.

// A tensor (N,C,H,W) in device memory with contiguous columns; strides in elements.
struct CudaImages {
  void* data;
  std::int64_t stride_n, stride_c, stride_h;
};

// y = conv(x, kernel) + bias, or with `relu` max(0, y), in which a NaN stays one. `turned` turns
// the kernel by 180 degrees, which gives the input gradient if x is the gradient of the output.
struct CudaConvParams {
  CudaImages x, y;
  const void* kernel;  // [C, KH, KW], contiguous
  const void* bias;    // [C], or null
  DType type;          // of all four tensors
  std::int64_t images, channels, height, width;
  int kernel_height, kernel_width;
  bool turned, relu;
  int device;
  cudaStream_t stream;
};

// The weight gradient. `splits` parts of the batch are summed separately, then their partial sums
// are added, always in the same order.
struct CudaConvWeightParams {
  CudaImages grad, x;
  void* kernel;     // [C, KH, KW], contiguous, written
  float* partials;  // [splits, C, KH, KW], scratch; may be null for one split
  int splits;
  DType type;  // of grad, x and kernel
  std::int64_t images, channels, height, width;
  int kernel_height, kernel_width;
  int device;
  cudaStream_t stream;
};

}  // namespace cba
