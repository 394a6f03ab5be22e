// The kernels that each instruction set provides; no C++ library header, see quantize_body.h.
#pragma once

#include <stdint.h>

namespace cba {

struct QuantizeKernels {
  int64_t (*float32)(const float* source, uint8_t* bytes, int64_t n);
  int64_t (*float64)(const double* source, uint8_t* bytes, int64_t n);

  static const QuantizeKernels kBaseline, kAvx2, kAvx512;
};

}  // namespace cba
