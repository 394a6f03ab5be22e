#include <immintrin.h>

#include "cpu/sweep_body.h"

namespace cba {
namespace {

struct Bytes64 {
  static constexpr int32_t kWidth = 64;
  __m512i bytes;

  static Bytes64 load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Bytes64 load_first(const uint8_t* p, int32_t n) {
    return {_mm512_maskz_loadu_epi8(~__mmask64{0} >> (kWidth - n), p)};
  }
  static Bytes64 all(uint8_t value) { return {_mm512_set1_epi8(static_cast<char>(value))}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, bytes); }

  friend Bytes64 min(Bytes64 a, Bytes64 b) { return {_mm512_min_epu8(a.bytes, b.bytes)}; }
  friend Bytes64 max(Bytes64 a, Bytes64 b) { return {_mm512_max_epu8(a.bytes, b.bytes)}; }
  friend uint64_t above(Bytes64 a, Bytes64 b) { return _mm512_cmpgt_epu8_mask(a.bytes, b.bytes); }
};

}  // namespace

const SweepKernels SweepKernels::kAvx512 = kernels_of<Bytes64>();

}  // namespace cba
