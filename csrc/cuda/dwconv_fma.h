// The float32 depthwise convolution on the FMA units. It computes in float32 (not TF32), and the
// order of additions depends on the shapes alone.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/dwconv.h"

namespace cba {

struct FmaTile {};  // empty, because these kernels choose their tiles by the shapes

// Says whether the tensors are float32.
bool fma_can_run(const CudaConvParams& params, const FmaTile&);
bool fma_can_run(const CudaConvWeightParams& params, const FmaTile&);

// Computes the convolution, or with `turned` its input gradient. Returns the error code of the
// launch without waiting for the kernel.
cudaError_t dwconv_fma_cuda(const CudaConvParams& params, const FmaTile&);

// Computes the weight gradient. With one split the sums are the result, and `partials` is not used.
cudaError_t dwconv_fma_weight_cuda(const CudaConvWeightParams& params, const FmaTile&);

}  // namespace cba
