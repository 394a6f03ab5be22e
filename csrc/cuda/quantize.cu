#include "cuda/launch.h"
#include "cuda/quantize.h"

namespace cba {
namespace {

constexpr int kThreads = 256;

// These functions name their rounding, so that no compiler setting can change the product.
__device__ unsigned scaled(float value) { return __float2uint_rz(__fmul_rn(255.0f, value)); }
__device__ unsigned scaled(double value) { return __double2uint_rz(__dmul_rn(255.0, value)); }

template <class Scalar>
__global__ void quantize_kernel(const Scalar* source, std::uint8_t* bytes, std::int64_t n,
                                unsigned long long* first_bad) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += step) {
    const Scalar value = source[i];
    if (value >= Scalar(0) && value <= Scalar(1)) {
      bytes[i] = static_cast<std::uint8_t>(scaled(value));
    } else {
      atomicMin(first_bad, static_cast<unsigned long long>(i));
    }
  }
}

template <class Scalar>
cudaError_t launch_as(const CudaQuantizeParams& p) {
  const Launch where = {grid_stride_blocks(p.n, kThreads), kThreads, 0, p.stream};
  return launch(where, quantize_kernel<Scalar>, static_cast<const Scalar*>(p.source), p.bytes, p.n,
                p.first_bad);
}

}  // namespace

cudaError_t quantize_cuda(const CudaQuantizeParams& params) {
  if (params.n == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  return params.dtype == DType::kFloat32 ? launch_as<float>(params) : launch_as<double>(params);
}

}  // namespace cba
