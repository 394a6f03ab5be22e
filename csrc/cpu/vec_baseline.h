// The Vec type in plain C++, by the compiler's vector extension with 16 bytes (SSE2, NEON, ...);
// vec_body.h says what a Vec type has.
#pragma once

#include <stdint.h>

#include "cpu/half_body.h"

namespace cba {
namespace {

struct Vec {
  static constexpr int kWidth = 4;
  typedef float Lanes __attribute__((vector_size(16)));
  Lanes v;

  static Vec zero() { return {Lanes{0, 0, 0, 0}}; }
  static Vec broadcast(float a) { return {Lanes{a, a, a, a}}; }
  static Vec load(const float* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static Vec load(const BFloat16* p) { return from_half(p, kWidth); }
  static Vec load(const Float16* p) { return from_half(p, kWidth); }
  static Vec load_head(const float* p, int count) {
    Vec r = zero();
    __builtin_memcpy(&r.v, p, count * sizeof(float));
    return r;
  }
  static Vec load_head(const BFloat16* p, int count) { return from_half(p, count); }
  static Vec load_head(const Float16* p, int count) { return from_half(p, count); }

  void store(float* p) const { __builtin_memcpy(p, &v, sizeof v); }
  void store(BFloat16* p) const { to_half(p, kWidth); }
  void store(Float16* p) const { to_half(p, kWidth); }
  void store_head(float* p, int count) const { __builtin_memcpy(p, &v, count * sizeof(float)); }
  void store_head(BFloat16* p, int count) const { to_half(p, count); }
  void store_head(Float16* p, int count) const { to_half(p, count); }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }

 private:
  template <class Half>
  static Vec from_half(const Half* p, int count) {
    Vec r = zero();
    for (int i = 0; i < count; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  template <class Half>
  void to_half(Half* p, int count) const {
    for (int i = 0; i < count; ++i) p[i] = from_float(v[i], Half{});
  }
};

inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
inline Vec at_least(Vec floor, Vec a) { return {a.v < floor.v ? floor.v : a.v}; }

inline void transpose(Vec (&rows)[4]) {
  Vec out[4];
  for (int j = 0; j < 4; ++j) {
    out[j].v = Vec::Lanes{rows[0].v[j], rows[1].v[j], rows[2].v[j], rows[3].v[j]};
  }
  for (int i = 0; i < 4; ++i) rows[i] = out[i];
}

}  // namespace
}  // namespace cba
