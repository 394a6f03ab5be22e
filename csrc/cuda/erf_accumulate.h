// map += sum over images and channels of f(gradient) on a CUDA device; see cpu/erf_accumulate.h for
// the contract.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/erf_grad.h"

namespace cba {

// What a gradient x adds to the map: max(x, 0), |x| or x * x.
enum class CudaErfMode { kRelu, kAbs, kSquare };

inline CudaErfMode parse_cuda_erf_mode(const std::string& name) {
  if (name == "relu") return CudaErfMode::kRelu;
  if (name == "abs") return CudaErfMode::kAbs;
  if (name == "square") return CudaErfMode::kSquare;
  throw std::invalid_argument("mode must be relu, abs or square, got " + name);
}

struct CudaErfAccumulateParams {
  CudaGradients grad;  // fewer than 2^31 pixels
  CudaErfMode mode;
  CudaErfMap map;
  int device;
  cudaStream_t stream;
};

// Returns once the kernel is launched, with the error code of the launch.
cudaError_t erf_accumulate_cuda(const CudaErfAccumulateParams& params);

}  // namespace cba
