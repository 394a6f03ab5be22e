// The half types as kernels see them: 16 bits, converted to float and back one value at a time. Vec
// types convert whole vectors with instructions where there are some.
#pragma once

#include <stdint.h>

namespace cba {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return float_of_bits(uint32_t(value.bits) << 16); }

inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Scaling by 2^112 turns the exponent's bias of 15 into 127, for subnormal numbers as well.
  const float scaled = float_of_bits(magnitude << 13) * float_of_bits((127 + 112) << 23);
  return float_of_bits(sign | bits_of_float(scaled));
}

inline float from_float(float value, float) { return value; }

// Rounds to the nearest, ties to even; a NaN stays a NaN.
inline BFloat16 from_float(float value, BFloat16) {
  const uint32_t bits = bits_of_float(value);
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline Float16 from_float(float value, Float16) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 rounds to infinity
  if (magnitude < 0x38800000) {  // below 2^-14 adding 0.5 rounds to the bits of the subnormal
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return {uint16_t(sign | (bits_of_float(shifted) - bits_of_float(0.5f)))};
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return {uint16_t(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13)};
}

}  // namespace
}  // namespace cba
