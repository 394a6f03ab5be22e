// CUDA's bfloat16 types for the emulator, with the functions that csrc/cuda/ uses.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const std::uint32_t wide = std::uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &wide, 4);
  return result;
}

CBA_INSTRUCTION __nv_bfloat16 __float2bfloat16_rn(float value) {
  std::uint32_t wide;
  std::memcpy(&wide, &value, 4);
  if (value != value) return {0x7fff};
  return {static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}
CBA_INSTRUCTION __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
// The larger of two values, or NaN if one is.
CBA_INSTRUCTION __nv_bfloat16 cba_max_nan(__nv_bfloat16 a, __nv_bfloat16 b) {
  const float x = __bfloat162float(a), y = __bfloat162float(b);
  if (x != x || y != y) return {0x7fff};
  return x < y ? b : a;
}
CBA_INSTRUCTION __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {cba_max_nan(a.x, b.x), cba_max_nan(a.y, b.y)};
}
