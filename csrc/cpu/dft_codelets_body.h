// Discrete Fourier transforms of small fixed lengths, one transform per lane:
//
//   X[k] = sum over n of x[n] * exp(-2 pi i n k / N),  N in 1 to 5, 7 to 9, 11, 13 and 16
//
// Odd primes pair x[n] with x[N - n], which leaves real factors (36 operations for 5, 66 for 7);
// 4, 8, 9 and 16 are split into two factors with constant twiddles. The inverse transform is the
// same with real and imaginary parts exchanged on both sides.
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

constexpr double kPi = 3.14159265358979323846;

// cos and sin for |x| <= pi by their power series, to double precision; for constants.
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

// cos and sin of `turn` / n of a full turn.
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

// An odd prime N.
template <int N>
struct Dft {
  static constexpr int kHalf = (N - 1) / 2;

  CBA_INLINE static inline void run(Complex (&x)[N]) {
    Complex sum[kHalf], difference[kHalf];
    Complex total = x[0];
    unroll<kHalf>([&](auto j) CBA_INLINE {
      sum[j] = x[1 + j] + x[N - 1 - j];
      difference[j] = x[1 + j] - x[N - 1 - j];
      total = total + sum[j];
    });
    unroll<kHalf>([&](auto k) CBA_INLINE {
      Complex even = x[0], odd = {Vec::zero(), Vec::zero()};
      unroll<kHalf>([&](auto j) CBA_INLINE {
        constexpr int turn = (decltype(k)::value + 1) * (decltype(j)::value + 1);
        const Vec c = Vec::broadcast(static_cast<float>(cos_turn(turn, N)));
        const Vec s = Vec::broadcast(static_cast<float>(sin_turn(turn, N)));
        even = {fma(c, sum[j].re, even.re), fma(c, sum[j].im, even.im)};
        if constexpr (decltype(j)::value == 0) {
          odd = {s * difference[j].re, s * difference[j].im};
        } else {
          odd = {fma(s, difference[j].re, odd.re), fma(s, difference[j].im, odd.im)};
        }
      });
      // even - i * odd, and its mirror image; x[0] is still needed, so it is written last.
      x[1 + k] = {even.re + odd.im, even.im - odd.re};
      x[N - 1 - k] = {even.re - odd.im, even.im + odd.re};
    });
    x[0] = total;
  }
};

template <>
struct Dft<1> {
  CBA_INLINE static inline void run(Complex (&)[1]) {}
};

template <>
struct Dft<2> {
  CBA_INLINE static inline void run(Complex (&x)[2]) {
    const Complex a = x[0];
    x[0] = a + x[1];
    x[1] = a - x[1];
  }
};

template <>
struct Dft<4> {
  CBA_INLINE static inline void run(Complex (&x)[4]) {
    const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = x[1] - x[3];
    x[0] = a + c;
    x[1] = {b.re + d.im, b.im - d.re};
    x[2] = a - c;
    x[3] = {b.re - d.im, b.im + d.re};
  }
};

// N = A * B: B transforms of length A over n = B * a + b, twiddles, A transforms of length B; the
// frequency is k = ka + A * kb.
template <int A, int B>
struct SplitDft {
  static constexpr int kN = A * B;

  CBA_INLINE static inline void run(Complex (&x)[kN]) {
    Complex inner[B][A];
    unroll<B>([&](auto b) CBA_INLINE {
      unroll<A>([&](auto a) CBA_INLINE { inner[b][a] = x[B * a + b]; });
      Dft<A>::run(inner[b]);
      unroll<A>([&](auto a) CBA_INLINE {
        constexpr int turn = decltype(a)::value * decltype(b)::value;
        inner[b][a] = rotate<turn, kN>(inner[b][a]);
      });
    });
    unroll<A>([&](auto a) CBA_INLINE {
      Complex outer[B];
      unroll<B>([&](auto b) CBA_INLINE { outer[b] = inner[b][a]; });
      Dft<B>::run(outer);
      unroll<B>([&](auto b) CBA_INLINE { x[a + A * b] = outer[b]; });
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
