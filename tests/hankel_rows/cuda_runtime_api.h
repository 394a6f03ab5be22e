// What csrc/cuda/dwconv_hankel_rows.h needs of CUDA to be compiled.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#define __host__
#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

enum cudaError_t { cudaSuccess };
using cudaStream_t = void*;
struct __half {
  std::uint16_t bits;
};

std::uint32_t __funnelshift_r(std::uint32_t low, std::uint32_t high, std::uint32_t by);
