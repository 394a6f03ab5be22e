// The quantizer's kernels of an instruction set. No C++ library header may be included here, see
// quantize_body.h.
#pragma once

#include <stdint.h>

namespace cba {

// Each kernel returns the index of the first value that is NaN or outside [0, 1], or -1.
struct QuantizeKernels {
  int64_t (*float32)(const float* source, uint8_t* bytes, int64_t n);
  int64_t (*float64)(const double* source, uint8_t* bytes, int64_t n);

  static const QuantizeKernels kBaseline, kAvx2, kAvx512;
};

}  // namespace cba
