#include <immintrin.h>

#include "cpu/sweep_body.h"

namespace cba {
namespace {

// 32 bytes of ones, then 32 of zeros: a mask of n leading bytes starts at byte 32 - n.
alignas(64) constexpr uint8_t kLeading[64] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                              255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                              255, 255, 255, 255, 255, 255, 255, 255, 255, 255};

struct Bytes32 {
  static constexpr int32_t kWidth = 32;
  __m256i bytes;

  static Bytes32 load(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static Bytes32 load_first(const uint8_t* p, int32_t n) {
    return {_mm256_and_si256(load(p).bytes, load(kLeading + kWidth - n).bytes)};
  }
  static Bytes32 all(uint8_t value) { return {_mm256_set1_epi8(static_cast<char>(value))}; }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes); }

  friend Bytes32 min(Bytes32 a, Bytes32 b) { return {_mm256_min_epu8(a.bytes, b.bytes)}; }
  friend Bytes32 max(Bytes32 a, Bytes32 b) { return {_mm256_max_epu8(a.bytes, b.bytes)}; }
  // AVX2 compares signed bytes only; a > b exactly if min(a, b) differs from a.
  friend uint64_t above(Bytes32 a, Bytes32 b) {
    const __m256i not_above = _mm256_cmpeq_epi8(min(a, b).bytes, a.bytes);
    return static_cast<uint32_t>(~_mm256_movemask_epi8(not_above));
  }
};

}  // namespace

const SweepKernels SweepKernels::kAvx2 = kernels_of<Bytes32>();

}  // namespace cba
