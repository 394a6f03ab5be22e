// The interface of the kernels for effective receptive fields of an instruction set. No C++ library
// header may be included here, see csrc/README.md. Strides are in elements.
#pragma once

#include <stdint.h>

#include "common/gradients.h"

namespace cba {

// Pixels x = 0 .. count - 1 of one image; value (c, x) is at data + c * stride_c + x * stride_x.
struct PixelRun {
  const void* data;
  int64_t channels, stride_c, stride_x, count;
};

// The most pixels of a run. What a kernel keeps for a run, at most 24 KB, stays in the L1 cache.
constexpr int kRun = 1024;

// The sum and the number of the values in a bucket, in one register.
typedef double ErfBin __attribute__((vector_size(16)));

// The bucket of a value is given by the top bits of its pattern below the sign: 8 bits of exponent
// and 3 of mantissa for float32, 11 of exponent for float64. Neighbours in a run go to different
// tables, so that an addition need not wait for the one before where pixels are alike.
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
constexpr int kBinTables = 4;

struct ErfKernels {
  // mean[x] = (|value(0, x)| + |value(1, x)| + ...) / channels, in this order, in the type of the
  // gradient or, for half types, in float32.
  void (*mean_float32)(const PixelRun& run, float* mean);
  void (*mean_float64)(const PixelRun& run, double* mean);
  void (*mean_float16)(const PixelRun& run, float* mean);
  void (*mean_bfloat16)(const PixelRun& run, float* mean);

  // Adds n values, none of them negative, to `tables`, kBinTables of kBins each.
  void (*bin_float32)(const float* values, int64_t n, ErfBin* tables);
  void (*bin_float64)(const double* values, int64_t n, ErfBin* tables);

  // Writes the patterns p of the values with low <= p < high and returns their number. `patterns`
  // must have room for kCollectSlack more.
  int64_t (*collect_float32)(const float* values, int64_t n, uint32_t low, uint32_t high,
                             uint32_t* patterns);
  int64_t (*collect_float64)(const double* values, int64_t n, uint64_t low, uint64_t high,
                             uint64_t* patterns);

  // sum[x] = f(value(0, x)) + f(value(1, x)) + ..., in this order and in float64; the old sum[x]
  // comes before them unless `first` is set. Indexed by ErfMode and DType.
  void (*sum[kErfModes][kFloatTypes])(const PixelRun& run, bool first, double* sum);

  // Adds `values` to `sums`, and the rounding errors of these additions to `errors`.
  void (*add_compensated)(const double* values, int64_t n, double* sums, double* errors);

  static const ErfKernels kBaseline, kAvx2, kAvx512;
};

constexpr int64_t kCollectSlack = 16;

}  // namespace cba
