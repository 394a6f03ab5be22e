// Discrete Fourier transforms of small fixed lengths, one transform per lane:
//
//   X[k] = sum over n of x[n] * exp(-2 pi i n k / N),  N in 1 to 5, 7 to 9, 11, 13 and 16
//
// For odd primes x[n] is paired with x[N - n], which leaves real factors (36 operations for 5, 66
// for 7). 8, 9 and 16 are split into two factors with constant twiddle factors. The inverse
// transform is the same with real and imaginary parts exchanged before and after it.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/vec_body.h"

namespace cba {
namespace {

struct Complex {
  Vec re, im;
};

CBA_INLINE inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
CBA_INLINE inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
CBA_INLINE inline Complex operator*(Complex a, Complex b) {
  return {fnma(a.im, b.im, a.re * b.re), fma(a.re, b.im, a.im * b.re)};
}
CBA_INLINE inline Complex times_minus_i(Complex a) { return {a.im, Vec::zero() - a.re}; }

constexpr int kComplex = 2 * Vec::kWidth;  // floats of a complex vector in memory

// The real part lies before the imaginary part; for an inverse transform they are exchanged.
template <bool kInverse>
CBA_INLINE inline Complex load_complex(const float* p) {
  const Vec re = Vec::load(p), im = Vec::load(p + Vec::kWidth);
  return kInverse ? Complex{im, re} : Complex{re, im};
}

template <bool kInverse>
CBA_INLINE inline void store_complex(Complex x, float* p) {
  (kInverse ? x.im : x.re).store(p);
  (kInverse ? x.re : x.im).store(p + Vec::kWidth);
}

constexpr double kPi = 3.14159265358979323846;

// cos and sin for |x| <= pi in double precision by their power series, for constants.
constexpr double cos_series(double x) {
  double term = 1, sum = 1;
  for (int i = 1; i < 16; ++i) sum += term *= -x * x / ((2 * i - 1) * (2 * i));
  return sum;
}
constexpr double sin_series(double x) {
  double term = x, sum = x;
  for (int i = 1; i < 16; ++i) sum += term *= -x * x / ((2 * i) * (2 * i + 1));
  return sum;
}

// cos and sin of the angle `turn` / n of a full turn.
constexpr double cos_turn(int turn, int n) {
  const int t = turn % n;
  return cos_series(2 * kPi * (2 * t > n ? t - n : t) / n);
}
constexpr double sin_turn(int turn, int n) {
  const int t = turn % n;
  return sin_series(2 * kPi * (2 * t > n ? t - n : t) / n);
}

// x * exp(-2 pi i turn / n)
template <int turn, int n>
CBA_INLINE inline Complex rotate(Complex x) {
  if constexpr (turn == 0) {
    return x;
  } else if constexpr (4 * turn == n) {
    return times_minus_i(x);
  } else if constexpr (8 * turn == n || 8 * turn == 3 * n) {
    constexpr float kRoot = static_cast<float>(cos_turn(1, 8));  // sqrt(1/2)
    const Vec sum = x.re + x.im, difference = x.im - x.re, root = Vec::broadcast(kRoot);
    if constexpr (8 * turn == n) {
      return {root * sum, root * difference};
    } else {
      return {root * difference, Vec::broadcast(-kRoot) * sum};
    }
  } else {
    const Vec c = Vec::broadcast(static_cast<float>(cos_turn(turn, n)));
    const Vec s = Vec::broadcast(static_cast<float>(sin_turn(turn, n)));
    return {fma(s, x.im, c * x.re), fnma(s, x.re, c * x.im)};
  }
}

// Dft<N>::run(load, store) transforms the samples load(Index<n>()) and passes each result to
// store(Index<k>(), X). Samples are loaded where they are needed and results are stored at once,
// because sixteen registers cannot hold all of them. All loads come before the first store.

// An odd prime N. The real parts of the results depend on the real parts of the sums and the
// imaginary parts of the differences, and the imaginary parts on the others. So one half is
// computed after the other, which takes half the registers.
template <int N>
struct Dft {
  static constexpr int kHalf = (N - 1) / 2;

  template <class Load, class Store>
  CBA_INLINE static inline void run(Load load, Store store) {
    const Complex first = load(Index<0>());
    Complex sum[kHalf], difference[kHalf], total = first;
    unroll<kHalf>([&](auto j) CBA_INLINE {
      const Complex a = load(Index<1 + j>()), b = load(Index<N - 1 - j>());
      sum[j] = a + b;
      difference[j] = a - b;
      total = total + sum[j];
    });
    Vec upper[kHalf], lower[kHalf];  // real parts of X[1 + k] and X[N - 1 - k]
    unroll<kHalf>([&](auto k) CBA_INLINE {
      const Vec even = cosines<k>(first.re, [&](auto j) CBA_INLINE { return sum[j].re; });
      const Vec odd = sines<k>([&](auto j) CBA_INLINE { return difference[j].im; });
      upper[k] = even + odd;
      lower[k] = even - odd;
    });
    store(Index<0>(), total);
    unroll<kHalf>([&](auto k) CBA_INLINE {
      const Vec even = cosines<k>(first.im, [&](auto j) CBA_INLINE { return sum[j].im; });
      const Vec odd = sines<k>([&](auto j) CBA_INLINE { return difference[j].re; });
      store(Index<1 + k>(), Complex{upper[k], even - odd});
      store(Index<N - 1 - k>(), Complex{lower[k], even + odd});
    });
  }

 private:
  template <int k, class Value>
  CBA_INLINE static inline Vec cosines(Vec start, Value value) {
    unroll<kHalf>([&](auto j) CBA_INLINE {
      constexpr float c = static_cast<float>(cos_turn((k + 1) * (decltype(j)::value + 1), N));
      start = fma(Vec::broadcast(c), value(j), start);
    });
    return start;
  }
  template <int k, class Value>
  CBA_INLINE static inline Vec sines(Value value) {
    Vec result = Vec::zero();
    unroll<kHalf>([&](auto j) CBA_INLINE {
      constexpr float s = static_cast<float>(sin_turn((k + 1) * (decltype(j)::value + 1), N));
      const Vec factor = Vec::broadcast(s);
      result = j == 0 ? factor * value(j) : fma(factor, value(j), result);
    });
    return result;
  }
};

template <>
struct Dft<1> {
  template <class Load, class Store>
  CBA_INLINE static inline void run(Load load, Store store) {
    store(Index<0>(), load(Index<0>()));
  }
};

template <>
struct Dft<2> {
  template <class Load, class Store>
  CBA_INLINE static inline void run(Load load, Store store) {
    const Complex a = load(Index<0>()), b = load(Index<1>());
    store(Index<0>(), a + b);
    store(Index<1>(), a - b);
  }
};

template <>
struct Dft<4> {
  template <class Load, class Store>
  CBA_INLINE static inline void run(Load load, Store store) {
    const Complex x0 = load(Index<0>()), x2 = load(Index<2>()), a = x0 + x2, b = x0 - x2;
    const Complex x1 = load(Index<1>()), x3 = load(Index<3>()), c = x1 + x3, d = x1 - x3;
    store(Index<0>(), a + c);
    store(Index<1>(), Complex{b.re + d.im, b.im - d.re});
    store(Index<2>(), a - c);
    store(Index<3>(), Complex{b.re - d.im, b.im + d.re});
  }
};

// N = A * B: B transforms of length A over n = B * a + b, multiplications by twiddle factors, and A
// transforms of length B; the frequency is k = ka + A * kb. Values between the two steps are kept
// in memory. Otherwise the compiler keeps moving them between registers and the stack (132 cycles
// instead of 96 for N = 16 with AVX2).
template <int A, int B>
struct SplitDft {
  template <class Load, class Store>
  CBA_INLINE static inline void run(Load load, Store store) {
    alignas(64) float between[A * B * kComplex];
    unroll<B>([&](auto b) CBA_INLINE {
      Dft<A>::run([&](auto a) CBA_INLINE { return load(Index<B * a + b>()); },
                  [&](auto a, Complex x) CBA_INLINE {
                    constexpr int turn = decltype(a)::value * decltype(b)::value;
                    store_complex<false>(rotate<turn, A * B>(x), between + (b * A + a) * kComplex);
                  });
    });
    unroll<A>([&](auto a) CBA_INLINE {
      Dft<B>::run([&](auto b)
                      CBA_INLINE { return load_complex<false>(between + (b * A + a) * kComplex); },
                  [&](auto b, Complex x) CBA_INLINE { store(Index<a + A * b>(), x); });
    });
  }
};

template <>
struct Dft<8> : SplitDft<2, 4> {};
template <>
struct Dft<9> : SplitDft<3, 3> {};
template <>
struct Dft<16> : SplitDft<4, 4> {};

}  // namespace
}  // namespace cba
