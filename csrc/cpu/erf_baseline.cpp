#include "cpu/vec_baseline.h"
// The Vec type comes first.
#include "cpu/erf_body.h"

namespace cba {
namespace {

int64_t append_between(const float* values, uint32_t low, uint32_t high, uint32_t* patterns) {
  return collect_one_by_one(values, Vec::kWidth, low, high, patterns);
}

void part_three(const float* from, float* a, float* b, float* c) {
  for (int i = 0; i < Vec::kWidth; ++i) {
    a[i] = from[3 * i];
    b[i] = from[3 * i + 1];
    c[i] = from[3 * i + 2];
  }
}

}  // namespace

const ErfKernels ErfKernels::kBaseline = erf_kernels();

}  // namespace cba
