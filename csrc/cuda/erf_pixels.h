// The order in which the ERF kernels read the pixels of gradients.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "common/gradients.h"
#include "cuda/floating.h"

namespace cba {

// What a kernel needs to know about gradients and map. Pixels are numbered along the axis with the
// smaller stride, so that neighbouring threads read neighbouring values in any layout.
struct ErfPixels {
  std::int64_t channels, stride_n, stride_c;
  std::int64_t stride_y, stride_x, map_stride_y, map_stride_x;
  unsigned count, width;
};

inline ErfPixels erf_pixels(Gradients grad, ErfMap map = {nullptr, 0, 0}) {
  // The stride of an axis of size 1 may be anything.
  const bool across = grad.height > 1 && grad.stride_h < grad.stride_w;
  if (grad.width == 1 || across) {
    std::swap(grad.height, grad.width);
    std::swap(grad.stride_h, grad.stride_w);
    std::swap(map.stride_h, map.stride_w);
  }
  return {grad.channels,
          grad.stride_n,
          grad.stride_c,
          grad.stride_h,
          grad.stride_w,
          map.stride_h,
          map.stride_w,
          static_cast<unsigned>(grad.height * grad.width),
          static_cast<unsigned>(grad.width)};
}

// The place of a pixel, of fewer than 2^31.
struct ErfPlace {
  std::int64_t y, x;
  __device__ ErfPlace(const ErfPixels& pixels, unsigned pixel)
      : y(pixel / pixels.width), x(pixel % pixels.width) {}
  __device__ std::int64_t in_image(const ErfPixels& p) const {
    return y * p.stride_y + x * p.stride_x;
  }
  __device__ std::int64_t in_map(const ErfPixels& p) const {
    return y * p.map_stride_y + x * p.map_stride_x;
  }
};

// Calls f(value) for all channels at one place of one image, in order. Four values are loaded at a
// time; f is called with zero for those beyond the last channel.
template <class T, class F>
__device__ __forceinline__ void for_each_channel(const T* at, const ErfPixels& pixels, const F& f) {
  constexpr int kAtOnce = 4;
  using Wide = decltype(widened(T{}));
  for (std::int64_t c = 0; c < pixels.channels; c += kAtOnce, at += kAtOnce * pixels.stride_c) {
    Wide values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      values[i] = c + i < pixels.channels ? widened(at[i * pixels.stride_c]) : Wide(0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) f(values[i]);
  }
}

// Calls f(static_cast<const T*>(data)) for the element type T of `grad`.
template <class F>
cudaError_t with_values(const Gradients& grad, const F& f) {
  switch (grad.type) {
    case DType::kFloat16:
      return f(static_cast<const __half*>(grad.data));
    case DType::kBfloat16:
      return f(static_cast<const __nv_bfloat16*>(grad.data));
    case DType::kFloat64:
      return f(static_cast<const double*>(grad.data));
    default:
      return f(static_cast<const float*>(grad.data));
  }
}

}  // namespace cba
