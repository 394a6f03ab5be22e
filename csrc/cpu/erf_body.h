// The kernels of the ERF ops. They are written once over a Vec type and over append_between and
// part_three, which each erf_<isa>.cpp provides.
//
// Values are first brought into contiguous rows of float32 or float64. The loops after that work
// element by element, so that vectors of any width give the same bits.
#pragma once

#include "cpu/erf_kernels.h"
#include "cpu/vec_body.h"

namespace cba {
namespace {

// Writes the patterns of those of kWidth values that are in [low, high) and returns their number.
// It may write up to kWidth patterns, whatever that number is.
int64_t append_between(const float* values, uint32_t low, uint32_t high, uint32_t* patterns);

// a[i] = from[3 * i], b[i] = from[3 * i + 1], c[i] = from[3 * i + 2] for i < kWidth.
void part_three(const float* from, float* a, float* b, float* c);

template <class T>
struct WideType {
  using Type = float;
};
template <>
struct WideType<double> {
  using Type = double;
};
template <class T>
using Wide = typename WideType<T>::Type;

inline double to_float(double value) { return value; }

// So many channels are added up in one pass: those of an RGB image.
constexpr int kPlanes = 3;

template <class T>
using Staging = Wide<T>[kPlanes][kRun];

template <class Half>
void widen(const Half* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) Vec::load(from + i).store(to + i);
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

template <class W>
void part_channels(const W* from, int64_t n, W* a, W* b, W* c) {
  int64_t x = 0;
  if constexpr (sizeof(W) == sizeof(float)) {
    for (; x + Vec::kWidth <= n; x += Vec::kWidth) part_three(from + 3 * x, a + x, b + x, c + x);
  }
  for (; x < n; ++x) {
    a[x] = from[3 * x];
    b[x] = from[3 * x + 1];
    c[x] = from[3 * x + 2];
  }
}

// Makes rows[i] point to the run's values of channel first + i, i < planes, as a contiguous row:
// where they lie, or copied to `staging`.
template <class T>
void read_rows(const PixelRun& run, int64_t first, int planes, Staging<T>& staging,
               const Wide<T>* (&rows)[kPlanes]) {
  const T* from = static_cast<const T*>(run.data) + first * run.stride_c;
  constexpr bool kHalf = sizeof(T) == 2;
  for (int i = 0; i < planes; ++i) rows[i] = staging[i];
  if (planes == kPlanes && run.stride_c == 1 && run.stride_x == kPlanes) {  // channels_last, RGB
    if constexpr (kHalf) {
      float dense[kPlanes * kRun];
      widen(from, kPlanes * run.count, dense);
      part_channels(dense, run.count, staging[0], staging[1], staging[2]);
    } else {
      part_channels(from, run.count, staging[0], staging[1], staging[2]);
    }
    return;
  }
  for (int i = 0; i < planes; ++i, from += run.stride_c) {
    if (run.stride_x != 1) {
      for (int64_t x = 0; x < run.count; ++x) staging[i][x] = to_float(from[x * run.stride_x]);
    } else if constexpr (kHalf) {
      widen(from, run.count, staging[i]);
    } else {
      rows[i] = from;
    }
  }
}

// A register of doubles or floats. The compiler's vectorizer would turn max(x, 0) into branches,
// which take twenty times as long for random signs.
template <class W>
struct Register {
  typedef W Type __attribute__((vector_size(sizeof(Vec))));
  static constexpr int kWidth = sizeof(Vec) / sizeof(W);

  template <class From>
  static Type load(const From* from) {
    typedef From Narrow __attribute__((vector_size(kWidth * sizeof(From))));
    Narrow values;
    __builtin_memcpy(&values, from, sizeof values);
    return __builtin_convertvector(values, Type);
  }
};

inline float magnitude(float x) { return __builtin_fabsf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }
inline Register<float>::Type magnitude(Register<float>::Type x) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof x)));
  return (Register<float>::Type)((Bits)x & 0x7fffffffu);
}
inline Register<double>::Type magnitude(Register<double>::Type x) {
  typedef uint64_t Bits __attribute__((vector_size(sizeof x)));
  return (Register<double>::Type)((Bits)x & uint64_t{0x7fffffffffffffff});
}

// sum[x] = f(rows[0][x]) + f(rows[1][x]) + ... from left to right; the old sum[x] comes before them
// unless `first` is set.
template <int Planes, class W, class Sum, class F>
void add_rows(const W* const* rows, int64_t n, bool first, Sum* sum, F f) {
  using Lanes = Register<Sum>;
  int64_t x = 0;
  for (; x + Lanes::kWidth <= n; x += Lanes::kWidth) {
    auto total = f(Lanes::load(rows[0] + x));
    if (!first) total = Lanes::load(sum + x) + total;
    unroll<Planes - 1>([&](auto i) { total += f(Lanes::load(rows[i + 1] + x)); });
    __builtin_memcpy(sum + x, &total, sizeof total);
  }
  for (; x < n; ++x) {
    Sum total = f(Sum(rows[0][x]));
    if (!first) total = sum[x] + total;
    unroll<Planes - 1>([&](auto i) { total += f(Sum(rows[i + 1][x])); });
    sum[x] = total;
  }
}

// The same for all channels of a run.
template <class T, class Sum, class F>
void sum_channels(const PixelRun& run, bool first, Sum* sum, F f) {
  Staging<T> staging;
  const Wide<T>* rows[kPlanes];
  for (int64_t c = 0; c < run.channels; c += kPlanes) {
    const int64_t left = run.channels - c;
    const int planes = left < kPlanes ? static_cast<int>(left) : kPlanes;
    read_rows<T>(run, c, planes, staging, rows);
    switch (planes) {
      case 1:
        add_rows<1>(rows, run.count, first && c == 0, sum, f);
        break;
      case 2:
        add_rows<2>(rows, run.count, first && c == 0, sum, f);
        break;
      default:
        add_rows<kPlanes>(rows, run.count, first && c == 0, sum, f);
    }
  }
}

template <class T>
void mean_of_channels(const PixelRun& run, Wide<T>* mean) {
  sum_channels<T>(run, true, mean, [](auto x) { return magnitude(x); });
  const Wide<T> channels = static_cast<Wide<T>>(run.channels);
  for (int64_t x = 0; x < run.count; ++x) mean[x] /= channels;
}

// A NaN stays a NaN in all three modes.
template <ErfMode Mode, class T>
void sum_of_channels(const PixelRun& run, bool first, double* sum) {
  sum_channels<T>(run, first, sum, [](auto x) {
    if constexpr (Mode == ErfMode::kRelu) return x < decltype(x){} ? decltype(x){} : x;
    if constexpr (Mode == ErfMode::kAbs) return magnitude(x);
    if constexpr (Mode == ErfMode::kSquare) return x * x;
  });
}

template <class Bits, class Scalar>
Bits pattern_of(Scalar value) {
  static_assert(sizeof(Bits) == sizeof(Scalar), "");
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class Bits, class Scalar>
CBA_INLINE inline void bin_one(Scalar value, double wide, ErfBin* table) {
  constexpr int kShift = 8 * sizeof(Bits) - 1 - kBinBits;
  table[pattern_of<Bits>(value) >> kShift & (kBins - 1)] += ErfBin{wide, 1.0};
}

template <class Bits, class Scalar>
void bin(const Scalar* values, int64_t n, ErfBin* tables) {
  typedef Scalar Pair __attribute__((vector_size(2 * sizeof(Scalar))));
  static_assert(kBinTables % 2 == 0, "");
  int64_t i = 0;
  for (; i + kBinTables <= n; i += kBinTables) {
    unroll<kBinTables / 2>([&](auto half) {
      constexpr int t = 2 * half;
      // Two values are converted at a time. The scalar conversion of x86 keeps half of its
      // destination, so that it waits for the addition before it (four times as slow).
      Pair pair;
      __builtin_memcpy(&pair, values + i + t, sizeof pair);
      const ErfBin wide = __builtin_convertvector(pair, ErfBin);
      bin_one<Bits>(values[i + t], wide[0], tables + t * kBins);
      bin_one<Bits>(values[i + t + 1], wide[1], tables + (t + 1) * kBins);
    });
  }
  for (; i < n; ++i) bin_one<Bits>(values[i], values[i], tables);
}

template <class Bits, class Scalar>
int64_t collect_one_by_one(const Scalar* values, int64_t n, Bits low, Bits high, Bits* patterns) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Bits bits = pattern_of<Bits>(values[i]);
    patterns[found] = bits;
    found += bits - low < high - low;  // unsigned, so that it is false below `low`, too
  }
  return found;
}

inline int64_t collect_vectors(const float* values, int64_t n, uint32_t low, uint32_t high,
                               uint32_t* patterns) {
  int64_t i = 0, found = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) {
    found += append_between(values + i, low, high, patterns + found);
  }
  return found + collect_one_by_one(values + i, n - i, low, high, patterns + found);
}

// The error of each addition is found exactly (D. Knuth, The Art of Computer Programming, volume 2,
// section 4.2.2).
inline void add_compensated(const double* __restrict values, int64_t n, double* __restrict sums,
                            double* __restrict errors) {
  for (int64_t x = 0; x < n; ++x) {
    const double sum = sums[x] + values[x];
    const double added = sum - sums[x];
    errors[x] += (sums[x] - (sum - added)) + (values[x] - added);
    sums[x] = sum;
  }
}

template <ErfMode Mode>
constexpr void set_sums(ErfKernels& kernels) {
  auto& sums = kernels.sum[static_cast<int>(Mode)];
  sums[static_cast<int>(DType::kFloat32)] = sum_of_channels<Mode, float>;
  sums[static_cast<int>(DType::kFloat64)] = sum_of_channels<Mode, double>;
  sums[static_cast<int>(DType::kFloat16)] = sum_of_channels<Mode, Float16>;
  sums[static_cast<int>(DType::kBfloat16)] = sum_of_channels<Mode, BFloat16>;
}

constexpr ErfKernels erf_kernels() {
  ErfKernels kernels = {};
  kernels.mean_float32 = mean_of_channels<float>;
  kernels.mean_float64 = mean_of_channels<double>;
  kernels.mean_float16 = mean_of_channels<Float16>;
  kernels.mean_bfloat16 = mean_of_channels<BFloat16>;
  kernels.bin_float32 = bin<uint32_t, float>;
  kernels.bin_float64 = bin<uint64_t, double>;
  kernels.collect_float32 = collect_vectors;
  kernels.collect_float64 = collect_one_by_one<uint64_t, double>;
  set_sums<ErfMode::kRelu>(kernels);
  set_sums<ErfMode::kAbs>(kernels);
  set_sums<ErfMode::kSquare>(kernels);
  kernels.add_compensated = add_compensated;
  return kernels;
}

}  // namespace
}  // namespace cba
