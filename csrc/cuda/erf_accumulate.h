// map += sum over images and channels of f(gradient) on a CUDA device; cpu/erf_accumulate.h says in
// which order.
#pragma once

#include <cuda_runtime_api.h>

#include "common/gradients.h"

namespace cba {

struct CudaErfAccumulateParams {
  Gradients grad;
  ErfMode mode;
  ErfMap map;
  int device;
  cudaStream_t stream;
};

// Returns the error code of the launch without waiting for the kernel.
cudaError_t erf_accumulate_cuda(const CudaErfAccumulateParams& params);

}  // namespace cba
