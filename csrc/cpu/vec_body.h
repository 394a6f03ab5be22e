// A Vec type is a vector of floats. Each instruction set has one, in vec_<isa>.h, and a file
// includes exactly one of these. A Vec type has
//
//   kWidth                        the number of floats
//   zero(), broadcast(a)
//   load(p), store(p)             float, BFloat16 or Float16, any alignment; rounds to nearest even
//   load_head(p, n)               loads the first n < kWidth elements, with zeros behind them
//   store_head(p, n)              stores the first n < kWidth elements
//   a + b, a - b, a * b
//   fma(a, b, c) = a * b + c and fnma(a, b, c) = c - a * b; rounded once where the set can do it
//   at_least(floor, a)            the larger of both, lane by lane; NaN where a is NaN
//   transpose(rows)               transposes kWidth vectors
//
// Everything is in unnamed namespaces and no C++ library header is included, see csrc/README.md.
#pragma once

#ifndef CBA_INLINE  // empty in builds with sanitizers
#define CBA_INLINE __attribute__((always_inline))
#endif

namespace cba {
namespace {

template <int I>
struct Index {
  static constexpr int value = I;
  constexpr operator int() const { return I; }
};

// Calls f(Index<0>()) ... f(Index<N - 1>()): a loop with a constant counter, so that arrays indexed
// by it stay in registers.
template <int N, int I = 0, class F>
CBA_INLINE inline void unroll(F&& f) {
  if constexpr (I < N) {
    f(Index<I>());
    unroll<N, I + 1>(f);
  }
}

}  // namespace
}  // namespace cba
