// The float32 depthwise convolution on the FMA units: strict float32 (no TF32), each sum in an
// order of additions that depends on the shapes alone.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/dwconv.h"

namespace cba {

struct FmaTile {};  // tiles are chosen here, by the shapes

// Whether these are of float32.
bool fma_can_run(const CudaConvParams& params, const FmaTile&);
bool fma_can_run(const CudaConvWeightParams& params, const FmaTile&);

// The convolution, or with `turned` its input gradient. Returns once the kernel is launched, with
// the error code of the launch.
cudaError_t dwconv_fma_cuda(const CudaConvParams& params, const FmaTile&);

// The weight gradient. With one split the partial sums are the result, and not written.
cudaError_t dwconv_fma_weight_cuda(const CudaConvWeightParams& params, const FmaTile&);

}  // namespace cba
