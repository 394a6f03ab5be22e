// The quantizer, written once over a small Vec type. Each quantize_<isa>.cpp includes this file and
// defines its Vec types.
//
// Everything is in an unnamed namespace and no C++ library header is included, because the linker
// keeps one copy of an inline function for all files, and that must not be one compiled for
// AVX-512.
//
// A Vec type has: Scalar, kWidth, load(const Scalar*), in_unit_interval() (false for NaN) and
// store_bytes(uint8_t*), which writes the kWidth bytes trunc(255 * value).
#pragma once

#include <stdint.h>

#include "cpu/quantize_kernels.h"

namespace cba {
namespace {

template <class Vec>
int64_t quantize_range(const typename Vec::Scalar* source, uint8_t* bytes, int64_t n) {
  using Scalar = typename Vec::Scalar;
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) {
    const Vec values = Vec::load(source + i);
    if (!values.in_unit_interval()) break;  // the loop below finds the bad one
    values.store_bytes(bytes + i);
  }
  for (; i < n; ++i) {
    if (!(source[i] >= Scalar(0) && source[i] <= Scalar(1))) return i;
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(Scalar(255) * source[i]));
  }
  return -1;
}

}  // namespace
}  // namespace cba
