#include <immintrin.h>

#include "cpu/quantize_body.h"

namespace cba {
namespace {

// Four vectors are taken at once, because packing them to bytes makes one vector.
struct Float32x32 {
  using Scalar = float;
  static constexpr int kWidth = 32;
  __m256 parts[4];

  static Float32x32 load(const float* source) {
    return {{_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8), _mm256_loadu_ps(source + 16),
             _mm256_loadu_ps(source + 24)}};
  }
  bool in_unit_interval() const {
    __m256 inside = _mm256_cmp_ps(parts[0], parts[0], _CMP_EQ_OQ);
    for (const __m256& part : parts) {
      inside = _mm256_and_ps(inside, _mm256_cmp_ps(part, _mm256_setzero_ps(), _CMP_GE_OQ));
      inside = _mm256_and_ps(inside, _mm256_cmp_ps(part, _mm256_set1_ps(1.0f), _CMP_LE_OQ));
    }
    return _mm256_movemask_ps(inside) == 0xff;
  }
  void store_bytes(uint8_t* bytes) const {
    __m256i ints[4];
    for (int i = 0; i < 4; ++i) {
      ints[i] = _mm256_cvttps_epi32(_mm256_mul_ps(parts[i], _mm256_set1_ps(255.0f)));
    }
    // The packs work within 128-bit halves; the permutation puts groups of four back in order.
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(ints[0], ints[1]),
                                               _mm256_packus_epi32(ints[2], ints[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes),
                        _mm256_permutevar8x32_epi32(packed, order));
  }
};

struct Float64x16 {
  using Scalar = double;
  static constexpr int kWidth = 16;
  __m256d parts[4];

  static Float64x16 load(const double* source) {
    return {{_mm256_loadu_pd(source), _mm256_loadu_pd(source + 4), _mm256_loadu_pd(source + 8),
             _mm256_loadu_pd(source + 12)}};
  }
  bool in_unit_interval() const {
    __m256d inside = _mm256_cmp_pd(parts[0], parts[0], _CMP_EQ_OQ);
    for (const __m256d& part : parts) {
      inside = _mm256_and_pd(inside, _mm256_cmp_pd(part, _mm256_setzero_pd(), _CMP_GE_OQ));
      inside = _mm256_and_pd(inside, _mm256_cmp_pd(part, _mm256_set1_pd(1.0), _CMP_LE_OQ));
    }
    return _mm256_movemask_pd(inside) == 0xf;
  }
  void store_bytes(uint8_t* bytes) const {
    __m128i ints[4];
    for (int i = 0; i < 4; ++i) {
      ints[i] = _mm256_cvttpd_epi32(_mm256_mul_pd(parts[i], _mm256_set1_pd(255.0)));
    }
    const __m128i packed =
        _mm_packus_epi16(_mm_packus_epi32(ints[0], ints[1]), _mm_packus_epi32(ints[2], ints[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), packed);
  }
};

}  // namespace

const QuantizeKernels QuantizeKernels::kAvx2 = {quantize_range<Float32x32>,
                                                quantize_range<Float64x16>};

}  // namespace cba
