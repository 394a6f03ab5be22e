// What a Vec type has (vec_<isa>.h, one per instruction set; a file includes exactly one of them):
//
//   kWidth                        float lanes
//   zero(), broadcast(a)
//   load(p), store(p)             float, BFloat16 or Float16, any alignment; to the nearest even
//   load_head(p, n)               the first n < kWidth elements, zeros behind them
//   store_head(p, n)
//   a + b, a - b, a * b
//   fma(a, b, c) = a * b + c and fnma(a, b, c) = c - a * b; rounded once where the set can
//   transpose(rows)               of kWidth vectors
//
// Everything is in unnamed namespaces and no C++ library header is included, see csrc/README.md.
#pragma once

#define CBA_INLINE __attribute__((always_inline))

namespace cba {
namespace {

template <int I>
struct Index {
  static constexpr int value = I;
  constexpr operator int() const { return I; }
};

// Calls f(Index<0>()) ... f(Index<N - 1>()): a loop whose counter is a constant, so that arrays
// indexed by it live in registers.
template <int N, int I = 0, class F>
CBA_INLINE inline void unroll(F&& f) {
  if constexpr (I < N) {
    f(Index<I>());
    unroll<N, I + 1>(f);
  }
}

}  // namespace
}  // namespace cba
