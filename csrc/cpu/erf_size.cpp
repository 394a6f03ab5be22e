// ERF sizes by selection, without sorting, that equal those of a sum in sorted order with all its
// rounding.
//
// The values are put into buckets by the top bits of their patterns, which have the order of the
// values. The buckets are added up from the top until p * total is reached; that bucket is split by
// its next bits, and so on.
//
// When does a sum of buckets equal the sum of one value after the other? Let all sums be at most
// U = 2^e, and q = U * 2^-53. Multiples of q up to U are float64 numbers, so that sums of multiples
// of q are exact in any order. A value with m bits of mantissa is a multiple of q if it is at least
// q * 2^m. Call such values coarse and the others fine. In descending order the coarse values come
// first, therefore
//
//   - without fine values (other than 0) everything is exact;
//   - sums over coarse values are always exact. Only the fine values must be sorted and added one
//     by one to get the total and all other sums of the definition.
//
// For float32 fine values are below 2^-30 * U, less than a thousandth of the mean for 384 x 384
// pixels.
//
// Even that is rarely necessary. Every addition that involves fine values has an error of at most
// q / 2, and so has the product p * total. This gives a bound D on the difference between our sums
// and threshold and those of the definition. If threshold - D and threshold + D lead to the same
// size, that is the size.
#include "cpu/erf_size.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <utility>

#include "common/parallel_for.h"

namespace cba {
namespace {

template <class Scalar>
struct Format;

template <>
struct Format<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kSmallest = -149;  // 2^kSmallest > 0
  static constexpr Bits kInfinity = Bits{0x7f800000};
  static constexpr auto kBin = &ErfKernels::bin_float32;
  static constexpr auto kCollect = &ErfKernels::collect_float32;
};

template <>
struct Format<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kSmallest = -1074;
  static constexpr Bits kInfinity = Bits{0x7ff0000000000000};
  static constexpr auto kBin = &ErfKernels::bin_float64;
  static constexpr auto kCollect = &ErfKernels::collect_float64;
};

// The pattern of 2^(q + kMantissa), the smallest coarse value. In float32 all values are fine for
// sums from 2^157 on, and this is infinity: a larger pattern would be beyond the buckets, and
// negative for kernels that compare patterns as signed numbers.
template <class F>
constexpr typename F::Bits smallest_coarse(int q) {
  const int exponent = q + F::kMantissa + F::kBias;
  const int infinite = static_cast<int>(F::kInfinity >> F::kMantissa);
  return static_cast<typename F::Bits>(std::min(exponent, infinite)) << F::kMantissa;
}

// Such sums need at least 2^29 pixels, too many for a test. So the largest ones are checked here:
// 2^31 values below 2^128 in float32, and the largest float64 sum that is not added in order.
static_assert(smallest_coarse<Format<float>>(156 + 1 - 53) < Format<float>::kInfinity, "");
static_assert(smallest_coarse<Format<float>>(159 + 1 - 53) == Format<float>::kInfinity, "");
static_assert(smallest_coarse<Format<double>>(1022 + 1 - 53) < Format<double>::kInfinity, "");

// So few values are sorted instead of split further.
constexpr std::int64_t kFew = 128;

double sum_in(const ErfBin& bin) { return bin[0]; }
std::int64_t number_in(const ErfBin& bin) { return static_cast<std::int64_t>(bin[1]); }

// Sorts in ascending order, digit by digit; returns `keys` or `spare`, which holds the result.
template <class Bits>
Bits* radix_sort(Bits* keys, Bits* spare, std::int64_t n) {
  constexpr int kDigit = 11;
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Bits)); shift += kDigit) {
    std::int64_t starts[1 << kDigit] = {};
    const auto digit = [&](Bits key) { return key >> shift & ((1 << kDigit) - 1); };
    for (std::int64_t i = 0; i < n; ++i) ++starts[digit(keys[i])];
    std::int64_t before = 0;
    for (std::int64_t& start : starts) before += std::exchange(start, before);
    for (std::int64_t i = 0; i < n; ++i) spare[starts[digit(keys[i])]++] = keys[i];
    std::swap(keys, spare);
  }
  return keys;
}

// Computes the sizes of one image after another, each of at most `pixels` pixels.
template <class Scalar>
class Selection {
  using F = Format<Scalar>;
  using Bits = typename F::Bits;

 public:
  using Mean = void (*)(const PixelRun&, Scalar*);

  explicit Selection(std::int64_t pixels)
      : room_(pixels),
        values_(new Scalar[pixels]),
        members_(new Bits[pixels + kCollectSlack]),
        spare_(new Bits[pixels + kCollectSlack]),
        tables_(new ErfBin[kBinTables * kBins]) {}

  std::int64_t room() const { return room_; }

  // Returns false if a mean or the total is not finite.
  bool run(const ErfKernels& kernels, Mean mean, const Runs& runs, std::int64_t image,
           const std::vector<double>& shares, std::int64_t* sizes) {
    kernels_ = &kernels;
    if (!load(mean, runs, image)) return false;
    if (total_ == 0) {
      std::fill_n(sizes, shares.size(), 0);
      return true;
    }
    const double off = bound();
    if (!std::isfinite(off) && !add_fine_in_order()) return false;
    for (std::size_t i = 0; i < shares.size(); ++i) {
      if (std::isfinite(off)) {
        const double threshold = shares[i] * total_;
        sizes[i] = select(threshold - off);
        if (off == 0 || select(threshold + off) == sizes[i]) continue;
        if (fine_sums_.empty()) add_fine_in_order();
      }
      sizes[i] = select_in_order(shares[i]);
    }
    return true;
  }

 private:
  static constexpr int kShift = 8 * sizeof(Bits) - 1 - kBinBits;

  static Scalar value_of(Bits bits) {
    Scalar value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  std::int64_t collect(Bits low, Bits high) {
    return (kernels_->*F::kCollect)(values_.get(), pixels_, low, high, members_.get());
  }

  // Reads the means and fills the buckets; returns false if a mean is not finite.
  bool load(Mean mean, const Runs& runs, std::int64_t image) {
    std::fill_n(tables_.get(), kBinTables * kBins, ErfBin{});
    pixels_ = 0;
    for (std::int64_t index = 0; index < runs.size(); ++index) {
      const PixelRun run = runs.run(image, index);
      mean(run, values_.get() + pixels_);
      (kernels_->*F::kBin)(values_.get() + pixels_, run.count, tables_.get());
      pixels_ += run.count;
    }
    fine_sums_.clear();
    collected_ = -1;
    lowest_ = kBins;
    highest_ = -1;
    total_ = 0;
    for (int key = kBins - 1; key >= 0; --key) {
      ErfBin& bin = tables_[key];
      for (int t = 1; t < kBinTables; ++t) bin += tables_[t * kBins + key];
      if (number_in(bin) == 0) continue;
      lowest_ = key;
      highest_ = std::max(highest_, key);
      total_ += sum_in(bin);
    }
    return highest_ < static_cast<int>(F::kInfinity >> kShift);
  }

  // Decides which values are fine and returns the bound D, or infinity if sums may overflow.
  double bound() {
    fine_below_ = F::kInfinity;
    if (!(total_ < 0x1p1022)) return std::numeric_limits<double>::infinity();
    fine_below_ = 0;
    // A sum of fewer than 2^31 values has a relative error of less than 2^-21.
    const int e = std::ilogb(total_ * (1 + 0x1p-20)) + 1;
    const int q = e - 53;
    if (q <= F::kSmallest) return 0;  // all numbers are multiples of q
    fine_below_ = smallest_coarse<F>(q);
    double fine = 0;
    for (int key = lowest_; key < static_cast<int>(fine_below_ >> kShift); ++key) {
      if (sum_in(tables_[key]) > 0) fine += tables_[key][1];
    }
    if (fine == 0) return 0;
    // These additions may be inexact: in our sum and in our total those of `fine` values and fewer
    // than 2^15 over buckets, in S_k and in S_last those of `fine` values.
    return std::ldexp(2 * fine + 0x1p15, q);
  }

  // The sum and number of the values that have been passed on the way down.
  struct Passed {
    double sum = 0;
    std::int64_t number = 0;
  };

  // Passes buckets from `key` down, which hold n values, until the threshold is reached. Returns
  // the bucket in which it is reached, or the lowest one that is not empty.
  static int pass(const ErfBin* bins, int key, std::int64_t n, double threshold, Passed& passed) {
    for (;; --key) {
      const std::int64_t here = number_in(bins[key]);
      if (here == 0) continue;
      if (here == n || passed.sum + sum_in(bins[key]) >= threshold) return key;
      passed.sum += sum_in(bins[key]);
      passed.number += here;
      n -= here;
    }
  }

  // The smallest k for which our sum of the k largest values is at least `threshold`, or the number
  // of pixels.
  std::int64_t select(double threshold) {
    Passed passed;
    const int key = pass(tables_.get(), highest_, pixels_, threshold, passed);
    if (collected_ != key) {
      const Bits low = static_cast<Bits>(key) << kShift;
      num_members_ = collect(low, low + (Bits{1} << kShift));
      collected_ = key;
    }
    return select_member(passed, threshold);
  }

  // The same for the bucket in members_; all values above it have been `passed`.
  std::int64_t select_member(Passed passed, double threshold) {
    Bits* values = members_.get();
    std::int64_t n = num_members_;
    // In maps of few levels each value would wait for the addition of the one before.
    const auto differs = [&](Bits bits) { return bits != values[0]; };
    if (std::none_of(values, values + n, differs)) {
      return select_equal(value_of(values[0]), n, passed, threshold);
    }
    for (int shift = kShift; n > kFew && shift > 0;) {
      const int digit = std::min(kBinBits, shift);
      shift -= digit;
      const int mask = (1 << digit) - 1;
      const auto digit_of = [&](Bits bits) { return static_cast<int>(bits >> shift) & mask; };
      std::fill_n(digits_, mask + 1, ErfBin{});
      for (std::int64_t i = 0; i < n; ++i) {
        digits_[digit_of(values[i])] += ErfBin{static_cast<double>(value_of(values[i])), 1.0};
      }
      const int key = pass(digits_, mask, n, threshold, passed);
      const auto is_key = [&](Bits bits) { return digit_of(bits) == key; };
      n = std::copy_if(values, values + n, spare_.get(), is_key) - spare_.get();
      values = spare_.get();
      if (shift == 0) return select_equal(value_of(values[0]), n, passed, threshold);
    }
    std::sort(values, values + n, std::greater<Bits>());
    for (std::int64_t i = 0; i < n; ++i) {
      passed.sum += value_of(values[i]);
      if (passed.sum >= threshold) return passed.number + i + 1;
    }
    return passed.number + n;
  }

  // The same for n equal values.
  static std::int64_t select_equal(double value, std::int64_t n, const Passed& passed,
                                   double threshold) {
    std::int64_t low = 1, high = n;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (passed.sum + static_cast<double>(middle) * value >= threshold) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return passed.number + low;
  }

  // Adds the fine values one by one in order; returns false if the total is not finite.
  bool add_fine_in_order() {
    coarse_sum_ = 0;
    num_coarse_ = 0;
    for (int key = highest_; key >= static_cast<int>(fine_below_ >> kShift); --key) {
      coarse_sum_ += sum_in(tables_[key]);
      num_coarse_ += number_in(tables_[key]);
    }
    const std::int64_t n = collect(1, fine_below_);
    collected_ = -1;
    const Bits* ascending = radix_sort(members_.get(), spare_.get(), n);
    fine_sums_.resize(n);
    double sum = coarse_sum_;
    for (std::int64_t i = 0; i < n; ++i) {
      fine_sums_[i] = sum += value_of(ascending[n - 1 - i]);
    }
    return std::isfinite(sum);
  }

  std::int64_t select_in_order(double share) {
    const double threshold = share * fine_sums_.back();
    if (threshold <= coarse_sum_) return select(threshold);  // sums over coarse values are exact
    const auto reached = std::lower_bound(fine_sums_.begin(), fine_sums_.end(), threshold);
    return num_coarse_ + 1 + (reached - fine_sums_.begin());
  }

  const ErfKernels* kernels_ = nullptr;
  std::int64_t room_, pixels_ = 0;
  std::unique_ptr<Scalar[]> values_;         // the means
  std::unique_ptr<Bits[]> members_, spare_;  // patterns of bucket `collected_`; scratch
  std::unique_ptr<ErfBin[]> tables_;         // the first one holds the sum of all
  ErfBin digits_[kBins];
  int lowest_ = 0, highest_ = 0;  // buckets that are not empty
  double total_ = 0;
  int collected_ = -1;
  std::int64_t num_members_ = 0;
  Bits fine_below_ = 0;
  double coarse_sum_ = 0;
  std::int64_t num_coarse_ = 0;
  std::vector<double> fine_sums_;  // S_k for the fine values v_k, if they were needed
};

// A thread's memory is kept between calls, because fresh pages would take as long as a selection.
template <class Scalar>
Selection<Scalar>& selection_for(std::int64_t pixels) {
  thread_local std::unique_ptr<Selection<Scalar>> kept;
  if (!kept || kept->room() < pixels) {
    kept.reset();
    kept = std::make_unique<Selection<Scalar>>(pixels);
  }
  return *kept;
}

template <class Scalar>
std::int64_t run(const Gradients& grad, void (*mean)(const PixelRun&, Scalar*),
                 const std::vector<double>& shares, std::int64_t* sizes, const ErfKernels& kernels,
                 int num_threads) {
  FirstIndex first_bad;
  const Runs runs(grad);
  const std::int64_t columns = static_cast<std::int64_t>(shares.size());
  parallel_for(grad.images, num_threads, [&](std::int64_t begin, std::int64_t end) {
    Selection<Scalar>& selection = selection_for<Scalar>(grad.height * grad.width);
    for (std::int64_t image = begin; image < end; ++image) {
      if (!selection.run(kernels, mean, runs, image, shares, sizes + image * columns)) {
        first_bad.note(image);
      }
    }
  });
  return first_bad.get();
}

}  // namespace

std::int64_t erf_size(const Gradients& grad, const std::vector<double>& shares, std::int64_t* sizes,
                      Isa isa, int num_threads) {
  const ErfKernels& kernels = kernels_for<ErfKernels>(isa);
  switch (grad.type) {
    case DType::kFloat64:
      return run(grad, kernels.mean_float64, shares, sizes, kernels, num_threads);
    case DType::kFloat16:
      return run(grad, kernels.mean_float16, shares, sizes, kernels, num_threads);
    case DType::kBfloat16:
      return run(grad, kernels.mean_bfloat16, shares, sizes, kernels, num_threads);
    default:
      return run(grad, kernels.mean_float32, shares, sizes, kernels, num_threads);
  }
}

}  // namespace cba
