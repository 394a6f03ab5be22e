// map += sum over images and channels of f(gradient) on a CUDA device; see cpu/erf_accumulate.h for
// the contract.
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

// Returns once the kernel is launched, with the error code of the launch.
cudaError_t erf_accumulate_cuda(const CudaErfAccumulateParams& params);

}  // namespace cba
