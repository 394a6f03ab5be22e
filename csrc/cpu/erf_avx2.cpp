#include "cpu/vec_avx2.h"
// The Vec type comes first.
#include "cpu/erf_body.h"

namespace cba {
namespace {

// lanes[mask] lists the set bits of the mask in ascending order, to move these lanes to the front.
struct Fronts {
  alignas(64) uint8_t lanes[256][8];

  constexpr Fronts() : lanes() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int bit = 0, next = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) lanes[mask][next++] = static_cast<uint8_t>(bit);
      }
    }
  }
};

constexpr Fronts kFronts;

// The values are not negative, so that their patterns have the same order as signed integers.
int64_t append_between(const float* values, uint32_t low, uint32_t high, uint32_t* patterns) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(low)), bits);
  const __m256i above = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(high)), bits);
  const unsigned mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(below, above)));
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kFronts.lanes[mask]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(patterns),
                      _mm256_permutevar8x32_epi32(bits, _mm256_cvtepu8_epi32(lanes)));
  return __builtin_popcount(mask);
}

// Three registers hold 24 values of the channels abcabc... Each lane has another channel in each
// register, so that two blends collect a channel and a permutation sorts it.
void part_three(const float* from, float* a, float* b, float* c) {
  const __m256 x = _mm256_loadu_ps(from), y = _mm256_loadu_ps(from + 8);
  const __m256 z = _mm256_loadu_ps(from + 16);
  constexpr int k147 = 0x92, k25 = 0x24, k036 = 0x49;  // lanes
  const __m256 as = _mm256_blend_ps(_mm256_blend_ps(x, y, k147), z, k25);
  const __m256 bs = _mm256_blend_ps(_mm256_blend_ps(x, y, k25), z, k036);
  const __m256 cs = _mm256_blend_ps(_mm256_blend_ps(x, y, k036), z, k147);
  _mm256_storeu_ps(a, _mm256_permutevar8x32_ps(as, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5)));
  _mm256_storeu_ps(b, _mm256_permutevar8x32_ps(bs, _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6)));
  _mm256_storeu_ps(c, _mm256_permutevar8x32_ps(cs, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7)));
}

}  // namespace

const ErfKernels ErfKernels::kAvx2 = erf_kernels();

}  // namespace cba
