// What all CUDA launches share. Kernels are launched on the caller's stream and on the device of
// its tensors. A failed launch returns an error code, which bindings_cuda.cpp turns into an
// exception.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/floating.h"

namespace cba {

// Makes `device` current for the lifetime of the object. The current device belongs to the driver
// and the thread and not to a copy of the CUDA runtime, so that this copy and PyTorch's see the
// same. It is set only if it differs, because setting a device without a context creates one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ != cudaSuccess || device == before_) return;
    status_ = cudaSetDevice(device);
    changed_ = status_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

// Calls launches(Half{}) for the half type of `params` on their device, unless there is nothing to
// compute. All tensor-core kernels are launched through this function.
template <class Params, class F>
cudaError_t launch_halves(const Params& params, const F& launches) {
  if (params.images == 0 || params.channels == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  return params.type == DType::kBfloat16 ? launches(__nv_bfloat16{}) : launches(__half{});
}

// The grid of a launch, its dynamic shared memory in bytes, and its stream.
struct Launch {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};

// The most dynamic shared memory of a block: every GPU since sm_80 has so much.
constexpr std::size_t kMostDynamicShared = 99 << 10;

// Launches kernel(arguments...) on the current device and returns the error code of the launch.
template <class... Parameters, class... Arguments>
cudaError_t launch(const Launch& where, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (where.shared > kWithoutAsking) {
    // The limit is always the same, because a kernel has one limit on each device, and another
    // thread may be about to launch the same kernel with more memory.
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(kMostDynamicShared));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = where.grid;
  config.blockDim = where.block;
  config.dynamicSmemBytes = where.shared;
  config.stream = where.stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The number of blocks for a grid-stride loop over n items: enough to fill any present GPU, and
// well below the limit of the grid's x dimension.
inline unsigned grid_stride_blocks(std::int64_t n, int threads) {
  const std::int64_t blocks = (n + threads - 1) / threads;
  return static_cast<unsigned>(std::min<std::int64_t>(blocks, 4096));
}

}  // namespace cba
