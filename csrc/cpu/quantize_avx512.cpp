#include <immintrin.h>

#include "cpu/quantize_body.h"

namespace cba {
namespace {

struct Float32x16 {
  using Scalar = float;
  static constexpr int kWidth = 16;
  __m512 values;

  static Float32x16 load(const float* source) { return {_mm512_loadu_ps(source)}; }
  bool in_unit_interval() const {
    const __mmask16 low = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_GE_OQ);
    return _mm512_mask_cmp_ps_mask(low, values, _mm512_set1_ps(1.0f), _CMP_LE_OQ) == 0xffff;
  }
  void store_bytes(uint8_t* bytes) const {
    const __m512i ints = _mm512_cvttps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(255.0f)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(ints));
  }
};

struct Float64x8 {
  using Scalar = double;
  static constexpr int kWidth = 8;
  __m512d values;

  static Float64x8 load(const double* source) { return {_mm512_loadu_pd(source)}; }
  bool in_unit_interval() const {
    const __mmask8 low = _mm512_cmp_pd_mask(values, _mm512_setzero_pd(), _CMP_GE_OQ);
    return _mm512_mask_cmp_pd_mask(low, values, _mm512_set1_pd(1.0), _CMP_LE_OQ) == 0xff;
  }
  void store_bytes(uint8_t* bytes) const {
    const __m256i ints = _mm512_cvttpd_epi32(_mm512_mul_pd(values, _mm512_set1_pd(255.0)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(bytes), _mm256_cvtepi32_epi8(ints));
  }
};

}  // namespace

const QuantizeKernels QuantizeKernels::kAvx512 = {quantize_range<Float32x16>,
                                                  quantize_range<Float64x8>};

}  // namespace cba
