// Transforms along one axis by the prime factor algorithm (Good 1958), which needs no twiddle
// factors between the factors of the length.
//
// A buffer holds a complex vector for each position (DftPlan in dwconv_kernels.h): kLanes real
// parts, then kLanes imaginary parts. The factors are axes of this buffer, and axis 0 has the
// largest stride. The forward transform reads samples where they lie through a table of offsets
// (axis 0) and continues in place (axes 1 and 2). It leaves frequencies in the order of positions,
// which is enough for products. The inverse goes through the axes in reverse and writes samples
// through a table.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dft_codelets_body.h"
#include "cpu/dwconv_io_body.h"

namespace cba {
namespace {

// Axis 0 from samples: the complex sample at position p is (re[offsets[p]], im[offsets[p]]).
template <int F>
void gather_axis(const float* re, const float* im, const int32_t* offsets, float* buffer,
                 int rest) {
  for (int m = 0; m < rest; ++m) {
    Dft<F>::run(
        [&](auto k) CBA_INLINE {
          const int32_t offset = offsets[k * rest + m];
          return Complex{Vec::load(re + offset), Vec::load(im + offset)};
        },
        [&](auto k, Complex x)
            CBA_INLINE { store_complex<false>(x, buffer + int64_t(k * rest + m) * kComplex); });
  }
}

// Axis 0 of the inverse, to samples.
template <int F>
void scatter_axis(const float* buffer, float* re, float* im, const int32_t* offsets, int rest) {
  for (int m = 0; m < rest; ++m) {
    Dft<F>::run(
        [&](auto k)
            CBA_INLINE { return load_complex<true>(buffer + int64_t(k * rest + m) * kComplex); },
        [&](auto k, Complex x) CBA_INLINE {
          const int32_t offset = offsets[k * rest + m];
          x.im.store(re + offset);
          x.re.store(im + offset);
        });
  }
}

// An axis in place: `outer` blocks of F * inner positions.
template <int F, bool kInverse>
void transform_axis(float* buffer, int outer, int inner) {
  for (int o = 0; o < outer; ++o) {
    for (int i = 0; i < inner; ++i) {
      float* p = buffer + int64_t(o * F * inner + i) * kComplex;
      Dft<F>::run(
          [&](auto k)
              CBA_INLINE { return load_complex<kInverse>(p + int64_t(k * inner) * kComplex); },
          [&](auto k, Complex x)
              CBA_INLINE { store_complex<kInverse>(x, p + int64_t(k * inner) * kComplex); });
    }
  }
}

// Transforms the last axis, multiplies by another spectrum and transforms back, all in one pass
// over the buffer instead of three.
template <int F>
void multiply_axis(float* buffer, const float* other, int outer) {
  for (int o = 0; o < outer; ++o) {
    float* p = buffer + int64_t(o) * F * kComplex;
    const float* q = other + int64_t(o) * F * kComplex;
    Dft<F>::run([&](auto k) CBA_INLINE { return load_complex<false>(p + k * kComplex); },
                [&](auto k, Complex x) CBA_INLINE {
                  store_complex<false>(x * load_complex<false>(q + k * kComplex), p + k * kComplex);
                });
    Dft<F>::run([&](auto k) CBA_INLINE { return load_complex<true>(p + k * kComplex); },
                [&](auto k, Complex x) CBA_INLINE { store_complex<true>(x, p + k * kComplex); });
  }
}

struct AxisKernels {
  void (*gather)(const float*, const float*, const int32_t*, float*, int);
  void (*scatter)(const float*, float*, float*, const int32_t*, int);
  void (*forward)(float*, int, int);
  void (*inverse)(float*, int, int);
  void (*multiply)(float*, const float*, int);
};

template <int F>
constexpr AxisKernels axis_kernels() {
  return {gather_axis<F>, scatter_axis<F>, transform_axis<F, false>, transform_axis<F, true>,
          multiply_axis<F>};
}

// The factors that dft_plan.cpp chooses from.
inline const AxisKernels& kernels_of_factor(int factor) {
#ifdef CBA_THIN  // one of each kind, for builds with sanitizers
  static constexpr AxisKernels kKernels[] = {axis_kernels<1>(), axis_kernels<2>(),
                                             axis_kernels<3>(), axis_kernels<5>(),
                                             axis_kernels<8>()};
  static constexpr signed char kIndex[] = {-1, 0, 1, 2, -1, 3, -1, -1, 4};
#else
  static constexpr AxisKernels kKernels[] = {
      axis_kernels<1>(),  axis_kernels<2>(),  axis_kernels<3>(), axis_kernels<4>(),
      axis_kernels<5>(),  axis_kernels<7>(),  axis_kernels<8>(), axis_kernels<9>(),
      axis_kernels<11>(), axis_kernels<13>(), axis_kernels<16>()};
  static constexpr signed char kIndex[] = {-1, 0,  1, 2,  3, 4,  -1, 5, 6,
                                           7,  -1, 8, -1, 9, -1, -1, 10};
#endif
  return kKernels[kIndex[factor]];
}

// A transform of one length, with the kernels of its factors.
class Transform {
 public:
  explicit Transform(const DftPlan& plan)
      : f0_(plan.factors[0]),
        f1_(plan.factors[1]),
        f2_(plan.factors[2]),
        first_(kernels_of_factor(f0_)),
        second_(kernels_of_factor(f1_)),
        third_(kernels_of_factor(f2_)) {}

  void forward(const float* re, const float* im, const int32_t* offsets, float* buffer) const {
    forward_but_last(re, im, offsets, buffer);
    third_.forward(buffer, f0_ * f1_, 1);
  }
  // Does forward(), multiplies by `spectrum`, and begins the inverse: axes 0 and 1 are left to
  // inverse_but_last().
  void forward_multiply(const float* re, const float* im, const int32_t* offsets,
                        const float* spectrum, float* buffer) const {
    forward_but_last(re, im, offsets, buffer);
    third_.multiply(buffer, spectrum, f0_ * f1_);
  }
  void inverse(float* buffer, float* re, float* im, const int32_t* offsets) const {
    third_.inverse(buffer, f0_ * f1_, 1);
    inverse_but_last(buffer, re, im, offsets);
  }
  // Ends the inverse after forward_multiply().
  void inverse_but_last(float* buffer, float* re, float* im, const int32_t* offsets) const {
    if (f1_ > 1) second_.inverse(buffer, f0_, f2_);
    first_.scatter(buffer, re, im, offsets, f1_ * f2_);
  }

 private:
  void forward_but_last(const float* re, const float* im, const int32_t* offsets,
                        float* buffer) const {
    first_.gather(re, im, offsets, buffer, f1_ * f2_);
    if (f1_ > 1) second_.forward(buffer, f0_, f2_);
  }

  int f0_, f1_, f2_;
  const AxisKernels &first_, &second_, &third_;
};

// Writes the offset of each position's sample, `stride` floats per sample. A position without a
// sample gets the offset of sample `none`.
inline const int32_t* make_offsets(const AxisRange& range, int n, int stride, int none,
                                   int32_t* offsets) {
  for (int p = 0; p < n; ++p) {
    offsets[p] = (range.sample[p] == range.count ? none : range.sample[p]) * stride;
  }
  return offsets;
}

}  // namespace
}  // namespace cba
