// The Vec type of AVX2 with FMA and F16C; vec_body.h says what a Vec type has.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/half_body.h"

namespace cba {
namespace {

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float a) { return {_mm256_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const BFloat16* p) { return widen_bfloat16(half_bits(p)); }
  static Vec load(const Float16* p) { return {_mm256_cvtph_ps(half_bits(p))}; }
  static Vec load_head(const float* p, int count) {
    return {_mm256_maskload_ps(p, head_mask(count))};
  }
  static Vec load_head(const BFloat16* p, int count) {
    return widen_bfloat16(half_bits_head(p, count));
  }
  static Vec load_head(const Float16* p, int count) {
    return {_mm256_cvtph_ps(half_bits_head(p, count))};
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(BFloat16* p) const { store_half_bits(p, narrow_bfloat16()); }
  void store(Float16* p) const { store_half_bits(p, narrow_float16()); }
  void store_head(float* p, int count) const { _mm256_maskstore_ps(p, head_mask(count), v); }
  void store_head(BFloat16* p, int count) const { copy_head(p, narrow_bfloat16(), count); }
  void store_head(Float16* p, int count) const { copy_head(p, narrow_float16(), count); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }

 private:
  static __m256i head_mask(int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  }
  template <class Half>
  static __m128i half_bits(const Half* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  template <class Half>
  static __m128i half_bits_head(const Half* p, int count) {
    Half padded[kWidth] = {};
    __builtin_memcpy(padded, p, count * sizeof(Half));
    return half_bits(padded);
  }
  template <class Half>
  static void store_half_bits(Half* p, __m128i bits) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
  }
  template <class Half>
  static void copy_head(Half* p, __m128i bits, int count) {
    Half all[kWidth];
    store_half_bits(all, bits);
    __builtin_memcpy(p, all, count * sizeof(Half));
  }
  static Vec widen_bfloat16(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  __m128i narrow_float16() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m128i narrow_bfloat16() const {  // see from_float in half_body.h
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i halves = _mm256_blendv_epi8(rounded, quiet, is_nan);
    const __m256i packed = _mm256_packus_epi32(halves, halves);  // within 128-bit halves
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
};

// a * b + c and c - a * b, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec at_least(Vec floor, Vec a) { return {_mm256_max_ps(floor.v, a.v)}; }

inline void transpose(Vec (&rows)[8]) {
  __m256 pair[8], quad[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pair[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace cba
