// What every CUDA launch shares. Kernels are launched on the stream of the caller, on the device of
// its tensors; a failed launch comes back as an error code, which bindings.cpp turns into an
// exception.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace cba {

// Makes `device` current for the lifetime of the object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && device != before_) status_ = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (status_ == cudaSuccess) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  cudaError_t status_;
};

// Blocks for a grid-stride loop over n items: enough to fill any present GPU, well below the limit
// of the grid's x dimension.
inline unsigned grid_stride_blocks(std::int64_t n, int threads) {
  const std::int64_t blocks = (n + threads - 1) / threads;
  return static_cast<unsigned>(std::min<std::int64_t>(blocks, 4096));
}

}  // namespace cba
