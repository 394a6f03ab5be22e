#include "cuda/dwconv_hankel_rows.h"
#include "cuda/floating.h"

namespace cba {
namespace {

// The arguments of the kernels. Sizes are in elements; `taps` are those that can meet the image.
template <class Half>
struct Plan {
  const Half* grad;
  const Half* x;
  float* partials;
  std::int64_t grad_stride[3], x_stride[3], images, channels;
  int height, width, kernel_height, kernel_width;
  HankelTaps taps;
  int steps;    // steps of 16 columns of an image
  int abreast;  // images that a warp takes side by side
  int column_tiles, bands, band_rows;
  std::int64_t units;                     // units of work of a channel, one for a warp at a time
  unsigned splits;                        // blocks of a channel
  int ring_rows, ring_stride, ring_size;  // ring_size includes a row of zeros
  int copy_words, grad_bytes, x_bytes, image_bytes, warp_bytes;
};

// Adds the sums of one warp after the other to `total`, which has kM * 16 rows of kN * 8 taps.
template <int kM, int kN>
__device__ __forceinline__ void add_warps(const float (&sum)[kM][kN][4], float* total) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  for (int turn = 0; turn < static_cast<int>(blockDim.x / 32); ++turn) {
    __syncthreads();
    if (warp != turn) continue;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = 16 * m + lane / 4 + i / 2 * 8, s = 8 * n + 2 * (lane % 4) + i % 2;
          float& cell = total[8 * kN * r + s];
          cell = turn ? cell + sum[m][n][i] : sum[m][n][i];
        }
      }
    }
  }
  __syncthreads();
}

// Adds the products of input row `row` with all rows of the gradient that it meets. For kernel row
// 16 m + lane % 16 the row of the gradient is in slot[m] of the ring.
template <class Half, int kM, int kN>
__device__ __forceinline__ void multiply(float (&sum)[kM][kN][4], const Plan<Half>& p, int row,
                                         const Half* ring, const int (&slot)[kM],
                                         const std::uint32_t* fragments) {
  const int lane = static_cast<int>(threadIdx.x % 32), latest = row + p.taps.rows / 2;
  const Half* grad[kM];
  bool met[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int r = 16 * m + lane % 16;
    const bool used =
        r < p.taps.rows && static_cast<unsigned>(latest - r) < static_cast<unsigned>(p.height);
    grad[m] = ring + (used ? slot[m] : p.ring_rows) * p.ring_stride + lane / 16 * 8;
    const int last = min(16 * m + 15, p.taps.rows - 1);
    met[m] = 16 * m <= min(latest, last) && latest - last < p.height;
  }
  std::uint32_t b[kN + 1];
#pragma unroll 2
  for (int step = 0; step < p.steps; ++step) {
    hankel_load(b, fragments, 2 * step, step > 0);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (!met[m]) continue;
      std::uint32_t a[4];
      ldmatrix_x4(a, grad[m] + 16 * step);
#pragma unroll
      for (int n = 0; n < kN; ++n) mma_m16n8k16(sum[m][n], a, b[n], b[n + 1], Half{});
    }
  }
}

template <class Half, int kM, int kN>
__global__ void __launch_bounds__(32 * kHankelWarps, 2) hankel_weight_kernel(const Plan<Half> p) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const std::int64_t channel = blockIdx.x / p.splits;
  const unsigned split = blockIdx.x % p.splits;
  const int margin = p.taps.rows / 2;  // rows of padding

  // This lane loads rows of one of the images that the warp takes side by side.
  const int lanes = 32 / p.abreast, mine = lane % p.abreast, place = lane / p.abreast;
  const int stage_bytes = p.grad_bytes + p.x_bytes;
  unsigned char* own = dynamic_shared() + warp * p.warp_bytes;
  auto* rings = reinterpret_cast<Half*>(own);
  unsigned char* staged = own + mine * p.image_bytes + 2 * p.ring_size;
  auto* laid =
      reinterpret_cast<std::uint32_t*>(own + 2 * p.ring_size + kHankelStages * stage_bytes);
  const std::uint32_t* fragments = hankel_fragments(laid, p.copy_words, lane);
  Half* ring = rings + mine * (p.image_bytes / 2);
  auto* x_row = laid + mine * (p.image_bytes / 4);
  for (int i = place; i < p.ring_stride / 2; i += lanes) {
    reinterpret_cast<std::uint32_t*>(ring + p.ring_rows * p.ring_stride)[i] = 0;
  }

  float sum[kM][kN][4] = {};
  for (std::int64_t unit = std::int64_t{split} * warps + warp; unit < p.units;
       unit += std::int64_t{p.splits} * warps) {
    const int cut = static_cast<int>(unit % (p.column_tiles * p.bands));
    const std::int64_t first_image = unit / (p.column_tiles * p.bands) * p.abreast;
    const std::int64_t image = first_image + mine;
    const int count = static_cast<int>(min(p.images - first_image, std::int64_t{p.abreast}));
    const int first = cut / p.column_tiles * p.band_rows, end = min(first + p.band_rows, p.height);
    const int column = cut % p.column_tiles * 16 * p.steps;
    const bool present = mine < count;
    const HankelWindow grad_window = {column, 16 * p.steps, p.width};
    const HankelWindow window = {column - p.taps.columns / 2, 16 * p.steps + 8 * kN, p.width};
    const Half* grad = p.grad + image * p.grad_stride[0] + channel * p.grad_stride[1];
    const Half* x = p.x + image * p.x_stride[0] + channel * p.x_stride[1];

    // Step `time` loads row `time` of the gradient and multiplies input row `time - margin`.
    const auto stage_of = [&](int time) { return staged + time % kHankelStages * stage_bytes; };
    const auto grad_pieces = [&](int time) {
      return HankelPieces(grad + time * p.grad_stride[2], grad_window, place, lanes);
    };
    const auto x_pieces = [&](int row) {
      return HankelPieces(x + row * p.x_stride[2], window, place, lanes);
    };
    const auto stage = [&](int time) {
      if (time < end + margin && present) {
        if (time < p.height) hankel_stage(stage_of(time), grad_pieces(time));
        if (time - margin >= first) {
          hankel_stage(stage_of(time) + p.grad_bytes, x_pieces(time - margin));
        }
      }
      cp_async_commit();
    };
    int time = max(first - margin, 0), slot[kM], newest = time % p.ring_rows;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      // Rows before the first one are never met, so that they may have any slot.
      slot[m] = (time + 64 * p.ring_rows - 16 * m - lane % 16) % p.ring_rows;
    }
    for (int s = 0; s < kHankelStages - 1; ++s) stage(time + s);
    for (; time < end + margin; ++time) {
      cp_async_wait<kHankelStages - 2>();
      __syncwarp();  // the rows are loaded, and all lanes are done with those before
      stage(time + kHankelStages - 1);
      if (time < p.height && present) {
        hankel_lay_out<false>(stage_of(time), grad_pieces(time).phase(), grad_window,
                              reinterpret_cast<std::uint32_t*>(ring + newest * p.ring_stride), 0,
                              place, lanes);
      }
      const int row = time - margin;
      if (row >= first) {
        if (present) {
          hankel_lay_out<true>(stage_of(time) + p.grad_bytes, x_pieces(row).phase(), window, x_row,
                               p.copy_words, place, lanes);
        }
        __syncwarp();
        for (int i = 0; i < count; ++i) {
          multiply<Half, kM, kN>(sum, p, row, rings + i * (p.image_bytes / 2), slot,
                                 fragments + i * (p.image_bytes / 4));
        }
      }
      newest = newest + 1 == p.ring_rows ? 0 : newest + 1;
#pragma unroll
      for (int m = 0; m < kM; ++m) slot[m] = slot[m] + 1 == p.ring_rows ? 0 : slot[m] + 1;
    }
  }

  auto* total = reinterpret_cast<float*>(dynamic_shared());
  add_warps(sum, total);
  float* out = p.partials + (split * p.channels + channel) * (p.kernel_height * p.kernel_width) +
               p.taps.first_row * p.kernel_width + p.taps.first_column;
  const int count = p.taps.rows * p.taps.columns;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int r = i / p.taps.columns, s = i % p.taps.columns;
    out[r * p.kernel_width + s] = total[8 * kN * r + s];
  }
}

constexpr int kSumThreads = 256;

// Adds the partial sums of the splits in order. Taps that cannot meet the image have none; their
// gradient is 0.
template <class Half>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const float* partials, Half* kernel, std::int64_t channels, unsigned splits,
               int kernel_height, int kernel_width, HankelTaps taps) {
  const int size = kernel_height * kernel_width;
  const std::int64_t count = channels * size;
  const std::int64_t step = std::int64_t{gridDim.x} * kSumThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x; i < count;
       i += step) {
    const int tap = static_cast<int>(i % size);
    const int r = tap / kernel_width - taps.first_row, s = tap % kernel_width - taps.first_column;
    const bool used = r >= 0 && r < taps.rows && s >= 0 && s < taps.columns;
    float sum = 0;
    for (unsigned split = 0; used && split < splits; ++split) sum += partials[split * count + i];
    store_one(kernel + i, sum);
  }
}

// The compiled kernels.
template <class Half>
struct Entry {
  int rows, columns;
  void (*kernel)(Plan<Half>);
};

#define CBA_HANKEL_ROW(m)                                                             \
  {m, 1, hankel_weight_kernel<Half, m, 1>}, {m, 2, hankel_weight_kernel<Half, m, 2>}, \
      {m, 4, hankel_weight_kernel<Half, m, 4>}, {                                     \
    m, 8, hankel_weight_kernel<Half, m, 8>                                            \
  }

template <class Half>
const Entry<Half>* entry(const HankelWeightTile& tile) {
  static constexpr Entry<Half> kEntries[] = {CBA_HANKEL_ROW(1),
                                             CBA_HANKEL_ROW(2),
                                             CBA_HANKEL_ROW(3),
                                             CBA_HANKEL_ROW(4),
                                             {3, 6, hankel_weight_kernel<Half, 3, 6>}};
  for (const Entry<Half>& e : kEntries) {
    if (e.rows == tile.rows && e.columns == tile.columns) return &e;
  }
  return nullptr;
}
#undef CBA_HANKEL_ROW

template <class Half>
Plan<Half> plan(const CudaConvWeightParams& p, const HankelWeightTile& tile) {
  Plan<Half> q = {};
  q.grad = static_cast<const Half*>(p.grad.data);
  q.x = static_cast<const Half*>(p.x.data);
  q.partials = p.partials;
  const std::int64_t strides[] = {p.grad.stride_n, p.grad.stride_c, p.grad.stride_h,
                                  p.x.stride_n,    p.x.stride_c,    p.x.stride_h};
  std::copy_n(strides, 3, q.grad_stride);
  std::copy_n(strides + 3, 3, q.x_stride);
  q.images = p.images;
  q.channels = p.channels;
  q.height = static_cast<int>(p.height);
  q.width = static_cast<int>(p.width);
  q.kernel_height = p.kernel_height;
  q.kernel_width = p.kernel_width;
  q.taps = hankel_taps(p.kernel_height, p.kernel_width, p.height, p.width);
  q.steps = tile.steps;
  q.abreast = tile.images;
  q.column_tiles = static_cast<int>(quotient_up(p.width, 16 * tile.steps));
  q.band_rows = static_cast<int>(quotient_up(p.height, tile.bands));
  q.bands = static_cast<int>(quotient_up(p.height, q.band_rows));
  q.units = quotient_up(p.images, tile.images) * q.column_tiles * q.bands;
  q.splits = static_cast<unsigned>(p.splits);
  q.ring_rows = std::min(q.taps.rows, q.height);
  q.ring_stride = 16 * tile.steps + 8;  // rows are 16 bytes apart in the banks, without conflicts
  q.ring_size = (q.ring_rows + 1) * q.ring_stride;
  const int window = 16 * tile.steps + 8 * tile.columns;
  q.copy_words = hankel_copy_words(window);
  q.grad_bytes = hankel_staged_bytes(16 * tile.steps);
  q.x_bytes = hankel_staged_bytes(window);
  const int bytes = 2 * q.ring_size + kHankelStages * (q.grad_bytes + q.x_bytes) + 8 * q.copy_words;
  q.image_bytes = hankel_image_bytes(bytes, tile.images);
  q.warp_bytes = tile.images * q.image_bytes;
  return q;
}

template <class Half>
unsigned warps_of(const Plan<Half>& q) {
  return static_cast<unsigned>(std::min<std::int64_t>(q.units, kHankelWarps));
}

template <class Half>
std::size_t shared_bytes(const Plan<Half>& q, const HankelWeightTile& tile) {
  const std::size_t total = 4 * 16 * tile.rows * 8 * tile.columns;
  return std::max(std::size_t{warps_of(q)} * q.warp_bytes, total);
}

template <class Half>
cudaError_t launch_as(const CudaConvWeightParams& p, const HankelWeightTile& tile) {
  const Plan<Half> q = plan<Half>(p, tile);
  const Launch where = {static_cast<unsigned>(p.channels * q.splits), 32 * warps_of(q),
                        shared_bytes(q, tile), p.stream};
  const cudaError_t status = launch(where, entry<Half>(tile)->kernel, q);
  if (status != cudaSuccess) return status;
  const std::int64_t count = p.channels * p.kernel_height * p.kernel_width;
  const Launch sum = {grid_stride_blocks(count, kSumThreads), kSumThreads, 0, p.stream};
  return launch(sum, sum_kernel<Half>, p.partials, static_cast<Half*>(p.kernel), p.channels,
                q.splits, p.kernel_height, p.kernel_width, q.taps);
}

}  // namespace

bool hankel_can_run(const CudaConvWeightParams& p, const HankelWeightTile& tile) {
  if (p.type != DType::kBfloat16 && p.type != DType::kFloat16) return false;
  if (p.images * p.channels == 0 || p.partials == nullptr) return false;
  if (entry<__half>(tile) == nullptr || tile.bands < 1) return false;
  if (tile.steps < 1 || tile.steps > 64) return false;
  if (tile.images < 1 || tile.images > 8 || 32 % tile.images != 0) return false;
  const Plan<__half> q = plan<__half>(p, tile);
  return 16 * tile.rows >= q.taps.rows && 8 * tile.columns >= q.taps.columns && p.splits > 0 &&
         p.channels <= INT32_MAX / p.splits && q.column_tiles <= INT32_MAX / q.bands &&
         shared_bytes(q, tile) <= kMostDynamicShared;
}

cudaError_t dwconv_hankel_weight_cuda(const CudaConvWeightParams& p, const HankelWeightTile& tile) {
  return launch_halves(p, [&](auto half) { return launch_as<decltype(half)>(p, tile); });
}

}  // namespace cba
