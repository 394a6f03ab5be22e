#include "cpu/vec_avx512.h"
// The Vec type comes first.
#include "cpu/erf_body.h"

namespace cba {
namespace {

// Where the 16 values of a channel lie among 48 in three registers: `first` picks from the first
// two registers, `second` from that result and the third.
struct Positions {
  alignas(64) int32_t first[3][16], second[3][16];

  constexpr Positions() : first(), second() {
    for (int channel = 0; channel < 3; ++channel) {
      for (int i = 0; i < 16; ++i) {
        const int at = 3 * i + channel;
        first[channel][i] = at < 32 ? at : 0;
        second[channel][i] = at < 32 ? i : at - 16;
      }
    }
  }
};

constexpr Positions kPositions;

void part_three(const float* from, float* a, float* b, float* c) {
  const __m512 x = _mm512_loadu_ps(from), y = _mm512_loadu_ps(from + 16);
  const __m512 z = _mm512_loadu_ps(from + 32);
  float* const to[3] = {a, b, c};
  for (int channel = 0; channel < 3; ++channel) {
    const __m512i first = _mm512_load_si512(kPositions.first[channel]);
    const __m512i second = _mm512_load_si512(kPositions.second[channel]);
    const __m512 both = _mm512_permutex2var_ps(x, first, y);
    _mm512_storeu_ps(to[channel], _mm512_permutex2var_ps(both, second, z));
  }
}

int64_t append_between(const float* values, uint32_t low, uint32_t high, uint32_t* patterns) {
  const __m512i bits = _mm512_loadu_si512(values);
  const __mmask16 from = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32(static_cast<int>(low)));
  const __mmask16 mask =
      _mm512_mask_cmplt_epu32_mask(from, bits, _mm512_set1_epi32(static_cast<int>(high)));
  _mm512_storeu_si512(patterns, _mm512_maskz_compress_epi32(mask, bits));
  return __builtin_popcount(mask);
}

}  // namespace

const ErfKernels ErfKernels::kAvx512 = erf_kernels();

}  // namespace cba
