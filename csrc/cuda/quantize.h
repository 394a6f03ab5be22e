// Quantizes score maps on a CUDA device, u = uint8(255 * m), as cpu/quantize.h does.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace cba {

struct CudaQuantizeParams {
  const void* source;  // [n], device memory
  DType dtype;
  std::uint8_t* bytes;  // [n], device memory
  std::int64_t n;
  // One element of device memory, which must hold n. The kernel lowers it to the index of the first
  // value that is NaN or outside [0, 1].
  unsigned long long* first_bad;
  int device;
  cudaStream_t stream;
};

// Returns the error code of the launch without waiting for the kernel.
cudaError_t quantize_cuda(const CudaQuantizeParams& params);

}  // namespace cba
