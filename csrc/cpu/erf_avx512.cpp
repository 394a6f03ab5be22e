#include "cpu/vec_avx512.h"
// The Vec type comes first.
#include "cpu/erf_body.h"

namespace cba {
namespace {

int64_t append_between(const float* values, uint32_t low, uint32_t high, uint32_t* patterns) {
  const __m512i bits = _mm512_loadu_si512(values);
  const __mmask16 from = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(static_cast<int>(low)));
  const __mmask16 mask =
      _mm512_mask_cmplt_epu32_mask(from, bits, _mm512_set1_epi32(static_cast<int>(high)));
  _mm512_storeu_si512(patterns, _mm512_maskz_compress_epi32(mask, bits));
  return __builtin_popcount(mask);
}

}  // namespace

const ErfKernels kErfAvx512 = erf_kernels();

}  // namespace cba
