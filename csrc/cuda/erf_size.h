// The number of pixels that hold a share of an image's gradient, on a CUDA device; cpu/erf_size.h
// has the definition.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/gradients.h"

namespace cba {

// What is written in place of a size.
constexpr std::int64_t kErfNotFinite = -1;  // a channel mean is NaN or infinite
constexpr std::int64_t kErfUndecided = -2;  // rounding may count, or the sum may be infinite

struct CudaErfSizeParams {
  Gradients grad;        // at least one channel
  const double* shares;  // [num_shares], host memory, read before the call returns
  int num_shares;
  std::int64_t* sizes;  // [N, num_shares], device memory; sizes or the codes above
  void* scratch;        // N times erf_size_cuda_scratch() bytes of device memory, aligned to 16
  int device;
  cudaStream_t stream;
};

// The bytes of scratch memory for an image.
std::size_t erf_size_cuda_scratch(const Gradients& grad);

// Returns the error code of the first launch that failed, without waiting for the kernels.
cudaError_t erf_size_cuda(const CudaErfSizeParams& params);

}  // namespace cba
