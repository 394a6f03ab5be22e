// The Vec type of AVX-512 (F, BW, DQ, VL); vec_body.h says what a Vec type has.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/half_body.h"

namespace cba {
namespace {

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float a) { return {_mm512_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) { return widen_bfloat16(half_bits(p)); }
  static Vec load(const Float16* p) { return {_mm512_cvtph_ps(half_bits(p))}; }
  static Vec load_head(const float* p, int count) {
    return {_mm512_maskz_loadu_ps(head_mask(count), p)};
  }
  static Vec load_head(const BFloat16* p, int count) {
    return widen_bfloat16(_mm256_maskz_loadu_epi16(head_mask(count), p));
  }
  static Vec load_head(const Float16* p, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(head_mask(count), p))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(BFloat16* p) const { store_half_bits(p, narrow_bfloat16()); }
  void store(Float16* p) const { store_half_bits(p, narrow_float16()); }
  void store_head(float* p, int count) const { _mm512_mask_storeu_ps(p, head_mask(count), v); }
  void store_head(BFloat16* p, int count) const {
    _mm256_mask_storeu_epi16(p, head_mask(count), narrow_bfloat16());
  }
  void store_head(Float16* p, int count) const {
    _mm256_mask_storeu_epi16(p, head_mask(count), narrow_float16());
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }

 private:
  static __mmask16 head_mask(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  template <class Half>
  static __m256i half_bits(const Half* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <class Half>
  static void store_half_bits(Half* p, __m256i bits) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
  }
  static Vec widen_bfloat16(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  __m256i narrow_float16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m256i narrow_bfloat16() const {  // see from_float in half_body.h
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
  }
};

// a * b + c and c - a * b, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec at_least(Vec floor, Vec a) { return {_mm512_max_ps(floor.v, a.v)}; }

inline void transpose(Vec (&rows)[16]) {
  __m512 pair[16], quad[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pair[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    quad[i] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  // quad[4 * a + b] holds columns b, b + 4, b + 8, b + 12 of rows 4 * a .. 4 * a + 3.
  for (int b = 0; b < 4; ++b) {
    const __m512 low = _mm512_shuffle_f32x4(quad[b], quad[4 + b], 0x88);
    const __m512 low_odd = _mm512_shuffle_f32x4(quad[b], quad[4 + b], 0xdd);
    const __m512 high = _mm512_shuffle_f32x4(quad[8 + b], quad[12 + b], 0x88);
    const __m512 high_odd = _mm512_shuffle_f32x4(quad[8 + b], quad[12 + b], 0xdd);
    rows[b].v = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[b + 4].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    rows[b + 8].v = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[b + 12].v = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

}  // namespace
}  // namespace cba
