// CUDA's float16 types for the emulator, with the functions that csrc/cuda/ uses.
#pragma once

#include <cmath>
#include <cstdint>

#include "emulator.h"

struct __half {
  std::uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

CBA_INSTRUCTION __half __float2half_rn(float value) {
  if (value != value) return {0x7fff};
  const unsigned sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size == 0) return {static_cast<std::uint16_t>(sign)};  // zero has no exponent
  if (size >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(size, &exponent);  // size < 2^exponent
  const int unit = exponent < -13 ? -24 : exponent - 11;
  // nearbyint rounds to even; a carry into the next power of two also raises the exponent.
  const unsigned steps = static_cast<unsigned>(std::nearbyint(std::ldexp(size, -unit)));
  const unsigned base = unit == -24 ? 0 : static_cast<unsigned>(unit + 24) << 10;
  return {static_cast<std::uint16_t>(sign | (base + steps))};
}
CBA_INSTRUCTION __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
// The larger of two values, or NaN if one is.
CBA_INSTRUCTION __half cba_max_nan(__half a, __half b) {
  const float x = __half2float(a), y = __half2float(b);
  if (x != x || y != y) return {0x7fff};
  return x < y ? b : a;
}
CBA_INSTRUCTION __half2 __hmax2_nan(__half2 a, __half2 b) {
  return {cba_max_nan(a.x, b.x), cba_max_nan(a.y, b.y)};
}
