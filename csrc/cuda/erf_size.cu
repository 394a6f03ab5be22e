// ERF sizes on a GPU by selection, without sorting. cpu/erf_size.cpp explains which sums are exact
// and the bound D of the error of the others.
//
// The first kernel reads the gradients, writes the channel means and puts them into buckets by the
// top bits of their patterns; many blocks share an image. In the second kernel a block for each
// image and share finds the bucket in which p * total is reached, splits it by its next bits, and
// so on down to a single value. It reads only the means, which are in the L2 cache for maps of
// common sizes. (A cluster of blocks for an image would be faster for single images, but needs
// sm_90.)
//
// Results do not depend on the order of atomic additions, because buckets hold integers. All values
// of a bucket have the same exponent, so that
//   sum = (count * m + rest) * unit
// with m the smallest mantissa of the bucket and rest the sum by which the values' patterns exceed
// the smallest one. The rest has up to 83 bits for float64. It is kept in 32-bit words with
// carries, which shared memory can add natively. The sum is rounded once when it becomes a float64,
// and the buckets are added in a fixed order. Zeros are not put into buckets: they change no sum,
// come last and never belong to a size.
//
// One descent decides for both ends of the interval: it finds a k such that the sum of the k - 1
// largest values does not reach threshold - D. If the sum of the k largest reaches threshold + D,
// then k is the size; if not, the image is left to the CPU's kernel.
#include <type_traits>

#include "cuda/erf_pixels.h"
#include "cuda/erf_size.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace cba {
namespace {

using Word = unsigned long long;  // the 64-bit type of atomicAdd

// Patterns of values are split into digits. The first digit is the exponent, for float32 with 3
// bits of the mantissa.
constexpr int kDigit = 11;
constexpr int kBins = 1 << kDigit;

template <class Bits>
struct Format;

template <>
struct Format<std::uint32_t> {
  static constexpr int kMantissa = 23, kBias = 127, kSmallest = -149;  // 2^kSmallest > 0
  static constexpr int kFirstShift = 31 - kDigit;
  static constexpr int kWords = 3;  // words of a bucket, see add_value
};

template <>
struct Format<std::uint64_t> {
  static constexpr int kMantissa = 52, kBias = 1023, kSmallest = -1074;
  static constexpr int kFirstShift = 63 - kDigit;
  static constexpr int kWords = 4;
};

__device__ std::uint32_t pattern_of(float value) { return __float_as_uint(value); }
__device__ std::uint64_t pattern_of(double value) {
  return static_cast<std::uint64_t>(__double_as_longlong(value));
}
__device__ double value_of(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ double value_of(std::uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

__device__ float sum_of(float a, float b) { return __fadd_rn(a, b); }
__device__ double sum_of(double a, double b) { return __dadd_rn(a, b); }
__device__ float quotient(float a, float b) { return __fdiv_rn(a, b); }
__device__ double quotient(double a, double b) { return __ddiv_rn(a, b); }

template <class Bits>
constexpr unsigned kPerPack = 16 / sizeof(Bits);

// The patterns of an image's means are stored in packs; the last one is filled up with kNothing.
template <class Bits>
struct alignas(16) Pack {
  static constexpr Bits kNothing = ~Bits{0};
  Bits values[kPerPack<Bits>];
};

// The scratch memory of the images: first their tables of buckets (counts, low and high words of
// the rests), then their packs.
constexpr std::size_t kTable = 3 * kBins;

template <class Bits>
struct Scratch {
  Word* tables;
  Pack<Bits>* packs;
  unsigned packs_per_image;

  static unsigned packs_for(std::int64_t pixels) {
    return static_cast<unsigned>((pixels + kPerPack<Bits> - 1) / kPerPack<Bits>);
  }
  static std::size_t bytes(std::int64_t pixels) {
    return kTable * sizeof(Word) + packs_for(pixels) * sizeof(Pack<Bits>);
  }
  Scratch(void* at, std::int64_t images, std::int64_t pixels)
      : tables(static_cast<Word*>(at)),
        packs(reinterpret_cast<Pack<Bits>*>(tables + images * kTable)),
        packs_per_image(packs_for(pixels)) {}

  __device__ Word* table(unsigned image) const { return tables + image * kTable; }
  __device__ Pack<Bits>* means(unsigned image) const {
    return packs + std::size_t{image} * packs_per_image;
  }
};

// Adds a value to a bucket. A bucket has a word in each of kWords arrays: the number of its values,
// and the words of the sum of their rests.
template <class Bits>
__device__ void add_value(unsigned* words, int bin, Bits rest) {
  atomicAdd(words + bin, 1u);
  if (rest == 0) return;  // as always at the last digit
  const auto low = static_cast<unsigned>(rest);
  const unsigned carry = atomicAdd(words + kBins + bin, low) > ~low;
  if constexpr (sizeof(Bits) == 8) {
    const unsigned high = static_cast<unsigned>(rest >> 32) + carry;  // rest < 2^52
    if (atomicAdd(words + 2 * kBins + bin, high) > ~high) atomicAdd(words + 3 * kBins + bin, 1u);
  } else if (carry) {
    atomicAdd(words + 2 * kBins + bin, 1u);
  }
}

// A bucket of fewer than 2^31 values, whose rests add up to low + 2^32 * high.
struct Bucket {
  Word count, low, high;
};

template <class Bits>
__device__ Bucket bucket_of(const unsigned* words, int bin) {
  Word high = words[2 * kBins + bin];
  if constexpr (Format<Bits>::kWords == 4) high |= Word{words[3 * kBins + bin]} << 32;
  return {words[bin], words[kBins + bin], high};
}

// The sum and the number of some values.
struct Part {
  double sum;
  unsigned count;
};

__device__ Part plus(const Part& a, const Part& b) {
  return {__dadd_rn(a.sum, b.sum), a.count + b.count};
}

// The sum and the number of a bucket's values; `begin` is the smallest pattern of the bucket.
template <class Bits>
__device__ Part part_of(const Bucket& bucket, Bits begin) {
  if (bucket.count == 0) return {0, 0};
  constexpr Bits kImplicit = Bits{1} << Format<Bits>::kMantissa;
  const Bits exponent = begin & ~(kImplicit - 1);
  const Word mantissa = (begin & (kImplicit - 1)) | (exponent != 0 ? kImplicit : 0);
  const double unit = __dsub_rn(value_of(exponent | 1), value_of(exponent));  // exact
  // Both are below 2^63 before the carry, and then high < 2^53, so that only the sum is rounded.
  const Word low = bucket.low + bucket.count * (mantissa & 0xffffffff);
  const Word high = bucket.high + bucket.count * (mantissa >> 32) + (low >> 32);
  const double integer = __dadd_rn(__dmul_rn(static_cast<double>(high), 0x1p32),
                                   static_cast<double>(low & 0xffffffff));
  return {__dmul_rn(integer, unit), static_cast<unsigned>(bucket.count)};
}

constexpr int kMeanThreads = 256;

// Block b has `chunk` pixels of image b / blocks, from b % blocks * chunk on, up to whole packs.
template <class T, class Scalar, class Bits>
__global__ void __launch_bounds__(kMeanThreads)
    means_kernel(const T* __restrict__ values, ErfPixels pixels, Scalar channels, unsigned blocks,
                 unsigned chunk, Scratch<Bits> scratch) {
  using F = Format<Bits>;
  auto* words = reinterpret_cast<unsigned*>(dynamic_shared());
  for (int i = threadIdx.x; i < F::kWords * kBins; i += kMeanThreads) words[i] = 0;
  __syncthreads();
  const unsigned image = blockIdx.x / blocks, begin = blockIdx.x % blocks * chunk;
  const unsigned end = min(begin + chunk, scratch.packs_per_image * kPerPack<Bits>);
  Bits* means = scratch.means(image)->values;
  values += image * pixels.stride_n;
  for (unsigned i = begin + threadIdx.x; i < end; i += kMeanThreads) {
    Bits bits = Pack<Bits>::kNothing;
    if (i < pixels.count) {
      Scalar sum = 0;  // the zeros that for_each_channel appends do not change it
      for_each_channel(values + ErfPlace(pixels, i).in_image(pixels), pixels,
                       [&](Scalar x) { sum = sum_of(sum, static_cast<Scalar>(fabs(x))); });
      bits = pattern_of(quotient(sum, channels));
      if (bits != 0) {
        const int bin = static_cast<int>(bits >> F::kFirstShift) & (kBins - 1);
        add_value<Bits>(words, bin, bits & ((Bits{1} << F::kFirstShift) - 1));
      }
    }
    means[i] = bits;
  }
  __syncthreads();
  Word* table = scratch.table(image);
  for (int bin = threadIdx.x; bin < kBins; bin += kMeanThreads) {
    const Bucket bucket = bucket_of<Bits>(words, bin);
    if (bucket.count == 0) continue;
    atomicAdd(table + bin, bucket.count);
    if (bucket.low != 0) atomicAdd(table + kBins + bin, bucket.low);
    if (bucket.high != 0) atomicAdd(table + 2 * kBins + bin, bucket.high);
  }
}

constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / 32;

// What the threads of a block of select_kernel share.
template <class Bits>
struct Board {
  unsigned words[Format<Bits>::kWords * kBins];
  Part of_warps[kMostWarps];
  Part above;           // the values above the bucket that was found
  unsigned count;       // the number of its own values
  int reached, lowest;  // places of buckets, see find_bucket
  unsigned fine;
};

// Buckets have places, with place 0 for the largest values; each thread has kBins / blockDim.x
// successive places. Returns the values in all places before those of this thread, and the `total`.
// `part_at` returns the values of a bucket.
template <class PartAt>
__device__ Part add_up(const PartAt& part_at, Part* of_warps, Part& total) {
  const int each = kBins / static_cast<int>(blockDim.x);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Part sum = {0, 0};
  for (int i = 0; i < each; ++i) {
    sum = plus(sum, part_at(kBins - 1 - static_cast<int>(threadIdx.x) * each - i));
  }
  for (int by = 1; by < 32; by *= 2) {
    const Part before = {__shfl_up_sync(~0u, sum.sum, by), __shfl_up_sync(~0u, sum.count, by)};
    if (lane >= by) sum = plus(before, sum);
  }
  Part before = {__shfl_up_sync(~0u, sum.sum, 1), __shfl_up_sync(~0u, sum.count, 1)};
  if (lane == 0) before = {0, 0};
  if (lane == 31) of_warps[warp] = sum;
  __syncthreads();
  total = {0, 0};
  Part above = {0, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    if (w == warp) above = plus(total, before);
    total = plus(total, of_warps[w]);
  }
  return above;
}

// A bucket and the values above it.
struct Found {
  Part above;
  unsigned count;
  int bin;
};

// Finds the first bucket with which the sum reaches the threshold, or the last one with values.
// `above` are the values above this thread's buckets.
template <class Bits, class PartAt>
__device__ Found find_bucket(const PartAt& part_at, Part above, double threshold,
                             Board<Bits>& board) {
  const int each = kBins / static_cast<int>(blockDim.x);
  Found mine = {};
  int place = -1;
  bool reached = false;
  for (int i = 0; i < each && !reached; ++i) {
    const int at = static_cast<int>(threadIdx.x) * each + i;
    const Part part = part_at(kBins - 1 - at);
    if (part.count == 0) continue;
    place = at;
    mine = {above, part.count, 0};
    above = plus(above, part);
    reached = above.sum >= threshold;
  }
  if (reached) {
    atomicMin(&board.reached, place);
  } else if (place >= 0) {
    atomicMax(&board.lowest, place);
  }
  __syncthreads();
  const int chosen = board.reached < kBins ? board.reached : board.lowest;
  if (place == chosen) {
    board.above = mine.above;
    board.count = mine.count;
  }
  __syncthreads();
  return {board.above, board.count, kBins - 1 - chosen};
}

// Puts those of the image's means whose bits from `shift + digit` on equal those of `prefix` into
// buckets on the board, by their next `digit` bits.
template <class Bits>
__device__ void split(const Pack<Bits>* __restrict__ means, unsigned packs, Bits prefix, int shift,
                      int digit, Board<Bits>& board) {
  constexpr int kAtOnce = 4;  // loads at a time
  for (int i = threadIdx.x; i < Format<Bits>::kWords * kBins; i += blockDim.x) board.words[i] = 0;
  if (threadIdx.x == 0) board.reached = kBins, board.lowest = -1;
  __syncthreads();
  const auto count = [&](const Pack<Bits>& pack) {
#pragma unroll
    for (const Bits bits : pack.values) {
      if ((bits ^ prefix) >> (shift + digit) != 0) continue;
      const int bin = static_cast<int>(bits >> shift) & ((1 << digit) - 1);
      add_value<Bits>(board.words, bin, bits & ((Bits{1} << shift) - 1));
    }
  };
  unsigned done = 0;
  for (; packs - done >= kAtOnce * blockDim.x; done += kAtOnce * blockDim.x) {
    Pack<Bits> loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) loaded[i] = means[done + i * blockDim.x + threadIdx.x];
#pragma unroll
    for (const Pack<Bits>& pack : loaded) count(pack);
  }
  for (unsigned at = done + threadIdx.x; at < packs; at += blockDim.x) count(means[at]);
  __syncthreads();
}

// The bound D, or infinity if sums may overflow; see cpu/erf_size.cpp. Here buckets are rounded and
// added: fewer than 2^13 roundings for each of at most six digits and for the total, each of at
// most half of 2^q, make less than the 2^15 of the bound.
template <class Bits>
__device__ double bound(const Word* table, double total, Board<Bits>& board) {
  using F = Format<Bits>;
  if (!(total < 0x1p1022)) return __longlong_as_double(0x7ffll << 52);
  // This covers the error of `total`.
  const std::uint64_t bits = pattern_of(__dmul_rn(total, 1 + 0x1p-20));
  const int e = static_cast<int>(bits >> 52) - 1023 + 1;
  const int q = e - 53;
  if (q <= F::kSmallest) return 0;  // all numbers are multiples of 2^q
  const int fine_below =
      min((q + F::kMantissa + F::kBias) << (F::kMantissa - F::kFirstShift), kBins);
  unsigned fine = 0;
  for (int bin = threadIdx.x; bin < fine_below; bin += blockDim.x) {
    fine += static_cast<unsigned>(table[bin]);
  }
  if (fine != 0) atomicAdd(&board.fine, fine);
  __syncthreads();
  return board.fine == 0 ? 0 : ldexp(2.0 * board.fine + 0x1p15, q);
}

// Returns the smallest m from 1 to n for which sum + m * value reaches the threshold, or n.
__device__ unsigned equal_values(double sum, double value, unsigned n, double threshold) {
  unsigned low = 1, high = n;
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if (__dadd_rn(sum, __dmul_rn(middle, value)) >= threshold) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

constexpr int kMostShares = 16;  // shares of a launch

struct Shares {
  double values[kMostShares];
  int count;
};

// Block b computes the size for share b % count of image b / count.
template <class Bits>
__global__ void __launch_bounds__(kMostThreads)
    select_kernel(Scratch<Bits> scratch, Shares shares, std::int64_t* sizes, int columns) {
  using F = Format<Bits>;
  auto& board = *reinterpret_cast<Board<Bits>*>(dynamic_shared());
  const unsigned image = blockIdx.x / shares.count, column = blockIdx.x % shares.count;
  const Word* table = scratch.table(image);
  const auto answer = [&](std::int64_t size) {
    if (threadIdx.x == 0) sizes[std::int64_t{image} * columns + column] = size;
  };
  if (threadIdx.x == 0) board.reached = kBins, board.lowest = -1, board.fine = 0;

  constexpr int kInfinity = (2 * F::kBias + 1) << (F::kMantissa - F::kFirstShift);
  bool infinite = false;
  for (int bin = kInfinity + threadIdx.x; bin < kBins; bin += blockDim.x)
    infinite |= table[bin] != 0;
  if (__syncthreads_or(infinite)) return answer(kErfNotFinite);

  int shift = F::kFirstShift;
  const auto part_in_table = [&](int bin) {
    const Bucket bucket = {table[bin], table[kBins + bin], table[2 * kBins + bin]};
    return part_of(bucket, static_cast<Bits>(bin) << F::kFirstShift);
  };
  Part total;
  const Part above = add_up(part_in_table, board.of_warps, total);
  if (total.count == 0) return answer(0);
  const double off = bound<Bits>(table, total.sum, board);
  if (off == __longlong_as_double(0x7ffll << 52)) return answer(kErfUndecided);
  const double threshold = __dmul_rn(shares.values[column], total.sum);
  const double near = __dsub_rn(threshold, off), far = __dadd_rn(threshold, off);

  Found found = find_bucket<Bits>(part_in_table, above, near, board);
  Bits prefix = static_cast<Bits>(found.bin) << shift;
  while (shift > 0) {
    const int digit = min(kDigit, shift);
    shift -= digit;
    split(scratch.means(image), scratch.packs_per_image, prefix, shift, digit, board);
    const auto part_on_board = [&](int bin) {
      return part_of(bucket_of<Bits>(board.words, bin), prefix | static_cast<Bits>(bin) << shift);
    };
    Part members;
    const Part above_mine = add_up(part_on_board, board.of_warps, members);
    found = find_bucket<Bits>(part_on_board, plus(found.above, above_mine), near, board);
    prefix |= static_cast<Bits>(found.bin) << shift;
  }
  const double value = value_of(prefix);
  const unsigned m = equal_values(found.above.sum, value, found.count, near);
  const double sum = __dadd_rn(found.above.sum, __dmul_rn(m, value));
  answer(sum >= far ? std::int64_t{found.above.count} + m : kErfUndecided);
}

// The pixels of a block of means_kernel. There are enough blocks for all multiprocessors even with
// one image, but not many more than run at a time, because each adds its table to the image's.
unsigned chunk_for(std::int64_t images, std::int64_t pixels) {
  constexpr unsigned kLeast = 4 * kMeanThreads, kMost = 32 * kMeanThreads;
  constexpr std::int64_t kBlocks = 4096;
  unsigned chunk = kLeast;
  while (chunk < kMost && images * (pixels / chunk + 1) > kBlocks) chunk *= 2;
  return chunk;
}

template <class T>
cudaError_t launch_means(const CudaErfSizeParams& p, const T* values) {
  using Scalar = decltype(widened(T{}));
  using Bits = std::conditional_t<std::is_same_v<Scalar, double>, std::uint64_t, std::uint32_t>;
  const Gradients& grad = p.grad;
  const std::int64_t pixels = grad.height * grad.width;
  const Scratch<Bits> scratch(p.scratch, grad.images, pixels);
  const std::size_t tables = grad.images * kTable * sizeof(Word);
  cudaError_t status = cudaMemsetAsync(scratch.tables, 0, tables, p.stream);
  if (status != cudaSuccess) return status;

  const unsigned chunk = chunk_for(grad.images, pixels);
  const unsigned blocks = (scratch.packs_per_image * kPerPack<Bits> - 1) / chunk + 1;
  const std::size_t words = sizeof(unsigned) * Format<Bits>::kWords * kBins;
  const Launch means = {dim3(static_cast<unsigned>(grad.images * blocks)), kMeanThreads, words,
                        p.stream};
  status = launch(means, means_kernel<T, Scalar, Bits>, values, erf_pixels(grad),
                  static_cast<Scalar>(grad.channels), blocks, chunk, scratch);
  if (status != cudaSuccess) return status;

  const unsigned threads = pixels < (1 << 14) ? 128 : kMostThreads;
  for (int first = 0; first < p.num_shares; first += kMostShares) {
    Shares shares = {{}, std::min(kMostShares, p.num_shares - first)};
    std::copy_n(p.shares + first, shares.count, shares.values);
    const Launch select = {dim3(static_cast<unsigned>(grad.images * shares.count)), threads,
                           sizeof(Board<Bits>), p.stream};
    status = launch(select, select_kernel<Bits>, scratch, shares, p.sizes + first, p.num_shares);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

std::size_t erf_size_cuda_scratch(const Gradients& grad) {
  const std::int64_t pixels = grad.height * grad.width;
  const bool wide = grad.type == DType::kFloat64;
  return wide ? Scratch<std::uint64_t>::bytes(pixels) : Scratch<std::uint32_t>::bytes(pixels);
}

cudaError_t erf_size_cuda(const CudaErfSizeParams& params) {
  const Gradients& grad = params.grad;
  if (grad.images == 0 || params.num_shares == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  if (grad.height == 0 || grad.width == 0) {
    const std::size_t bytes = sizeof(*params.sizes) * grad.images * params.num_shares;
    return cudaMemsetAsync(params.sizes, 0, bytes, params.stream);
  }
  return with_values(grad, [&](const auto* values) { return launch_means(params, values); });
}

}  // namespace cba
