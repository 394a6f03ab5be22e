#include "cpu/dft_plan.h"

#include <algorithm>
#include <array>

namespace cba {
namespace {

struct Factor {
  int length;
  int cost;  // vector operations of its transform; a fused operation counts as two
};

#ifdef CBA_THIN  // those of dft_axes_body.h
constexpr Factor kFactors[] = {{2, 4}, {3, 14}, {5, 36}, {8, 56}};
constexpr std::int64_t kLongest = 120;
#else
constexpr Factor kFactors[] = {{2, 4},  {3, 14},  {4, 16},   {5, 36},   {7, 66},
                               {8, 56}, {9, 112}, {11, 160}, {13, 222}, {16, 170}};
// Longer transforms work on several megabytes at a time, so that tiles are cheaper.
constexpr std::int64_t kLongest = 360;
#endif
// The cost of loads, stores and offsets for an element on each axis.
constexpr int kMoveCost = 6;

struct Length {
  int n;
  std::array<int, 3> factors;  // the axis of the last one is multiplied in place
  double cost;
};

int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }

// All products of up to three pairwise coprime factors, sorted by length.
std::vector<Length> make_lengths() {
  std::vector<Length> lengths;
  const auto add = [&](std::initializer_list<Factor> factors) {
    Length length{1, {1, 1, 1}, 0};
    int axis = 3;
    for (const Factor& f : factors) {
      length.n *= f.length;
      length.factors[--axis] = f.length;
      length.cost += double(f.cost) / f.length + kMoveCost;
    }
    // Two factors use axes 0 and 2.
    if (factors.size() == 2) std::swap(length.factors[0], length.factors[1]);
    length.cost *= length.n;
    if (length.n <= 2 * kLongest) lengths.push_back(length);
  };
  add({{1, 0}});
  for (const Factor& a : kFactors) {
    add({a});
    for (const Factor& b : kFactors) {
      if (b.length >= a.length || gcd(a.length, b.length) > 1) continue;
      add({a, b});
      for (const Factor& c : kFactors) {
        if (c.length >= b.length || gcd(a.length * b.length, c.length) > 1) continue;
        add({a, b, c});
      }
    }
  }
  std::sort(lengths.begin(), lengths.end(), [](const Length& a, const Length& b) {
    return a.n != b.n ? a.n < b.n : a.cost < b.cost;
  });
  return lengths;
}

// The cheapest length of at least `least`.
const Length& cheapest_length(std::int64_t least) {
  static const std::vector<Length> lengths = make_lengths();
  const Length* best = nullptr;
  for (const Length& length : lengths) {
    if (length.n >= least && (best == nullptr || length.cost < best->cost)) best = &length;
  }
  return *best;
}

int inverse_modulo(int a, int m) {
  for (int i = 1; i < m; ++i) {
    if (a % m * i % m == 1) return i;
  }
  return 0;  // m = 1
}

}  // namespace

Axis::Axis(std::int64_t size, std::int64_t taps, bool flipped, bool reduce) {
  // Taps that are further out than the image is long meet only padding.
  const std::int64_t radius = taps / 2, reach = std::min(radius, size - 1);
  std::int64_t pieces = 1;
  while (pieces > 1 ? (size + pieces - 1) / pieces + 2 * reach > kLongest
                    : size + reach > kLongest) {
    ++pieces;
  }
  const std::int64_t step = (size + pieces - 1) / pieces;
  // A sample and an output at a distance d must not meet through a tap at the distance n - d.
  std::int64_t furthest = 0;
  for (std::int64_t begin = 0; begin < size; begin += step) {
    const std::int64_t end = std::min(size, begin + step);
    furthest = std::max({furthest, end - 1 - std::max<std::int64_t>(0, begin - reach),
                         std::min(size, end + reach) - 1 - begin});
  }
  const Length& length = cheapest_length(furthest + reach + 1);
  plan_.dft.n = length.n;
  std::copy(length.factors.begin(), length.factors.end(), plan_.dft.factors);
  make_dft_tables();

  const std::int64_t first_tap = radius - reach, num_taps = 2 * reach + 1;
  for (std::int64_t begin = 0; begin < size; begin += step) {
    const std::int64_t end = std::min(size, begin + step);
    const std::int64_t from = std::max<std::int64_t>(0, begin - reach);
    const std::int64_t to = std::min(size, end + reach);
    AxisTile tile;
    tile.a = range(from, to - from, 0, 1);
    if (reduce) {
      // sum over o of x[o + d] * grad[o] is the product with grad[o] at -o; tap d is then at d.
      tile.b = range(begin, end - begin, from - begin, -1);
      tile.out = range(first_tap, num_taps, -reach, 1);
    } else {
      // y[o] = sum over d of w[d] * x[o + d] is the product with w[d] at -d.
      tile.b = range(first_tap, num_taps, flipped ? -reach : reach, flipped ? 1 : -1);
      tile.out = range(begin, end - begin, begin - from, 1);
    }
    tiles_.push_back(tile);
    plan_.max_count = std::max({plan_.max_count, tile.a.count, tile.b.count, tile.out.count});
  }
  plan_.tiles = tiles_.data();
  plan_.num_tiles = static_cast<int>(tiles_.size());
}

void Axis::make_dft_tables() {
  const int n = plan_.dft.n;
  const int* f = plan_.dft.factors;
  int inverse[3];
  for (int i = 0; i < 3; ++i) inverse[i] = inverse_modulo(n / f[i], f[i]);
  position_.resize(n);
  for (int t = 0; t < n; ++t) {
    int digit[3];
    for (int i = 0; i < 3; ++i) digit[i] = t % f[i] * inverse[i] % f[i];
    position_[t] = (digit[0] * f[1] + digit[1]) * f[2] + digit[2];
  }
  // The position of frequency k has the digits k mod f_i.
  conjugate_.resize(n);
  for (int p = 0; p < n; ++p) {
    const int digit[3] = {p / (f[1] * f[2]), p / f[2] % f[1], p % f[2]};
    int opposite = 0;
    for (int i = 0; i < 3; ++i) opposite = opposite * f[i] + (f[i] - digit[i]) % f[i];
    conjugate_[p] = opposite;
    if (p <= opposite) half_.push_back(p);
  }
  plan_.dft.conjugate = conjugate_.data();
  plan_.dft.half = half_.data();
  plan_.dft.num_half = static_cast<int>(half_.size());
}

AxisRange Axis::range(std::int64_t begin, std::int64_t count, std::int64_t first, int sign) {
  const std::int64_t n = plan_.dft.n;
  std::vector<std::int32_t> sample(n, static_cast<std::int32_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    sample[position_[((first + sign * i) % n + n) % n]] = static_cast<std::int32_t>(i);
  }
  samples_.push_back(std::move(sample));
  return {begin, static_cast<int>(count), samples_.back().data()};
}

}  // namespace cba
