// Functions that convert and store values, with the same names for all floating types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/dtype.h"

namespace cba {

// Converts a value to the type in which sums are computed.
__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds a value and stores it.
__device__ __forceinline__ void store_one(__nv_bfloat16* to, float a) {
  *to = __float2bfloat16_rn(a);
}
__device__ __forceinline__ void store_one(__half* to, float a) { *to = __float2half_rn(a); }

// Rounds two values and stores them together; `to` must be aligned to their size.
__device__ __forceinline__ void store_pair(__nv_bfloat16* to, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}
__device__ __forceinline__ void store_pair(__half* to, float a, float b) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(a, b);
}

// max(0, value), in which a NaN stays one; of eight halves, a piece of 16 bytes.
__device__ __forceinline__ float rectified(float value) { return value < 0.0f ? 0.0f : value; }
__device__ __forceinline__ std::uint32_t rectified(std::uint32_t pair, __nv_bfloat16) {
  const std::uint32_t zero = 0;
  const auto most = __hmax2_nan(reinterpret_cast<const __nv_bfloat162&>(pair),
                                reinterpret_cast<const __nv_bfloat162&>(zero));
  return reinterpret_cast<const std::uint32_t&>(most);
}
__device__ __forceinline__ std::uint32_t rectified(std::uint32_t pair, __half) {
  const std::uint32_t zero = 0;
  const auto most =
      __hmax2_nan(reinterpret_cast<const __half2&>(pair), reinterpret_cast<const __half2&>(zero));
  return reinterpret_cast<const std::uint32_t&>(most);
}
template <class Half>
__device__ __forceinline__ uint4 rectified(const uint4& v, Half half) {
  return make_uint4(rectified(v.x, half), rectified(v.y, half), rectified(v.z, half),
                    rectified(v.w, half));
}

}  // namespace cba
