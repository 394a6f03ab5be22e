#include "cuda/dwconv_fma.h"
#include "cuda/dwconv_fma_tile.h"
#include "cuda/launch.h"

namespace cba {
namespace {

using namespace fma_tile;

// A block computes all taps of a channel over one part of the batch. In each turn it takes some
// whole images or a part of one image. Several threads, called slices, compute a thread tile of
// taps: each takes an image of the turn, some of its rows, and every n-th step along the columns.
// In the end their sums are added in the order of the slices.
struct Plan {
  int rows, columns;  // taps of a thread tile
  PaddedTile x;
  Places places;                // thread tiles
  int images;                   // images of a turn
  int tile_height, tile_width;  // part of grad in a turn
  int tiles_y, tiles_x;
  int grad_pitch, grad_stride;
  int row_slices, column_slices, step;  // step: columns between two steps of a slice
  bool by_image;                        // neighboring lanes take images, else tiles of taps
  int threads;
  std::int64_t part;  // images per split
  double cost;
};

constexpr int kSumPad = 1;  // floats that avoid bank conflicts
// The threads of a block, unless there are more thread tiles and images. Of small blocks one
// computes while others copy; larger ones are taken if they waste less.
constexpr int kFewThreads = 128, kManyThreads = 256;

std::size_t shared_bytes(const Plan& plan) {
  const std::size_t tiles =
      static_cast<std::size_t>(plan.x.floats) + std::size_t{1} * plan.images * plan.grad_stride;
  const std::size_t sums = std::size_t{1} * plan.rows * plan.columns * (plan.threads + kSumPad);
  return sizeof(float) * std::max(tiles, sums);
}

int thread_tiles(const Plan& plan) { return plan.places.rows * plan.places.columns; }

// Divides the work of a turn among at most `most` threads, but at least one for each thread tile
// and image.
Plan sliced(const Plan& plan, int most) {
  Plan shared = plan;
  const int working = thread_tiles(plan) * plan.images, slices = std::max(most / working, 1);
  const int steps = divided_up(plan.tile_width, kStep);
  shared.column_slices = divided_up(steps, divided_up(steps, slices));  // the same for each slice
  shared.row_slices =
      std::min(divided_up(plan.tile_height, plan.rows), slices / shared.column_slices);
  shared.step = shared.column_slices * kStep;
  shared.threads = rounded_up(working * shared.column_slices * shared.row_slices, 32);
  return shared;
}

// The lanes of a block times the steps of the longest walk.
int lane_steps(const Plan& plan) {
  return plan.threads * divided_up(divided_up(plan.tile_width, kStep), plan.column_slices) *
         divided_up(plan.tile_height, plan.row_slices);
}

void slice(Plan& plan) {
  Plan best = sliced(plan, kFewThreads);
  for (int threads = kFewThreads + 32; threads <= kManyThreads; threads += 32) {
    const Plan other = sliced(plan, threads);
    if (lane_steps(other) < lane_steps(best)) best = other;
  }
  plan = best;
}

// Cuts planes, so that a turn takes a part of one image.
void cut_plane(const CudaConvWeightParams& p, int height, int width, Plan& plan) {
  constexpr int kMostColumns = 128, kPixels = 4096, kFewestRows = 32;
  plan.images = 1;
  plan.tiles_x = divided_up(width, kMostColumns);
  plan.tile_width = rounded_up(divided_up(width, plan.tiles_x), kStep);
  plan.grad_pitch = plan.tile_width;
  int most = rounded_up(std::max(kFewestRows, kPixels / plan.tile_width), plan.rows);
  do {
    plan.tiles_y = divided_up(height, most);
    plan.tile_height = divided_up(height, plan.tiles_y);
    plan.x =
        image_part(plan.places.rows * plan.rows,
                   rounded_up(plan.places.columns * plan.columns, kStep), plan.tile_height,
                   plan.tile_width, height, width, p.kernel_width / 2, plan.rows, plan.tiles_x > 1);
    plan.grad_stride = (plan.tile_height + 1) * plan.grad_pitch;
    slice(plan);
    most /= 2;
  } while (shared_bytes(plan) > kShared && most > 0);
}

// Tries to take `images` whole images in a turn; returns false if they do not fit. `plan` is
// replaced if that wastes little.
bool take_images(const CudaConvWeightParams& p, int images, int height, int width, Plan& plan) {
  if (images > 1 && images * thread_tiles(plan) > most_threads(plan.rows, plan.columns)) {
    return false;
  }
  if (images > std::max<std::int64_t>(plan.part, 1)) return false;
  Plan larger = plan;
  larger.by_image = images >= 8;
  const int units = larger.by_image ? 1 : 0;
  larger.images = images;
  larger.tiles_y = larger.tiles_x = 1;
  larger.tile_height = height, larger.tile_width = width;
  larger.x = whole_images(images, height, width, p.kernel_height / 2, p.kernel_width / 2, plan.rows,
                          units);
  larger.grad_pitch = rounded_up(width, kStep);
  larger.grad_stride = (height + 1) * larger.grad_pitch;
  while (larger.by_image && (larger.grad_stride / 4 - units) % 8) larger.grad_stride += 4;
  slice(larger);
  // Three blocks then fit on a multiprocessor of sm_90, so that one computes while others copy.
  if (shared_bytes(larger) > kShared / 4 * 3) return false;
  const std::int64_t taken = (plan.part + images - 1) / images * images;
  if (8 * (taken - plan.part) <= plan.part) plan = larger;
  return true;
}

Plan plan_for(const CudaConvWeightParams& p, int rows, int columns) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  Plan plan = {};
  plan.rows = rows, plan.columns = columns;
  plan.part = (p.images + p.splits - 1) / p.splits;
  plan.places = {divided_up(p.kernel_height, rows), divided_up(p.kernel_width, columns)};
  if (p.height * p.width <= kShared / 4) {
    for (int images = 1; take_images(p, images, height, width, plan);) images *= 2;
  }
  if (plan.images == 0) cut_plane(p, height, width, plan);
  // Parts have whole turns. The last parts may be smaller or empty.
  plan.part = (plan.part + plan.images - 1) / plan.images * plan.images;
  const int steps = divided_up(plan.tile_width, kStep);
  const int working = thread_tiles(plan) * plan.images * plan.row_slices * plan.column_slices;
  const int rounds = divided_up(steps, plan.column_slices);
  plan.cost = walk_cost(rows, columns, plan.places.rows, p.kernel_height / 2, height, height) *
              plan.places.columns * rounds * plan.column_slices / steps *
              lanes_per_work(plan.threads, working, plan.by_image);
  return plan;
}

// A thread's tile of taps and its slice of the work.
struct Share {
  Places place;
  int tile;  // the number of the tile of taps
  int image, rows, columns;
};

// The order of threads: the innermost ones differ only in the image, or if there are too few images
// in the slice of columns. Then come the thread tiles, then the other slices. So neighbors read
// shared memory 16 bytes apart, modulo all banks, and walk equally far.
__host__ __device__ inline int neighbors(const Plan& plan) {
  return plan.by_image ? plan.images : plan.column_slices;
}

__device__ Share share_of(const Plan& plan, int thread) {
  const int tiles = plan.places.rows * plan.places.columns;
  const int inner = thread % neighbors(plan), run = thread / neighbors(plan);
  const int outer = run / tiles;
  Share share;
  share.tile = run % tiles;
  if (plan.by_image) {
    share.image = inner, share.columns = outer % plan.column_slices;
    share.rows = outer / plan.column_slices;
    share.place = mirrored_place(share.tile, plan.places);
  } else {
    share.columns = inner, share.image = outer % plan.images;
    share.rows = outer / plan.images;
    share.place = {share.tile / plan.places.columns, share.tile % plan.places.columns};
  }
  return share;
}

// What a block reads in a turn: a rectangle of `count` images.
struct Turn {
  int count, row, column;
};

template <int kRows, int kColumns>
__device__ __forceinline__ void accumulate(float (&sum)[kRows][kColumns], const float* pixels,
                                           const float* grad, const CudaConvWeightParams& p,
                                           const Plan& plan, const Turn& turn) {
  const Share share = share_of(plan, thread_anew());
  if (share.image >= turn.count || share.rows >= plan.row_slices) return;
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int pad_y = p.kernel_height / 2, pad_x = p.kernel_width / 2;
  const int tap_row = share.place.rows * kRows, tap_column = share.place.columns * kColumns;
  const int slice_height = divided_up(plan.tile_height, plan.row_slices);

  Range ys = clipped(tap_row, kRows, pad_y, height, height);
  const int slice_row = turn.row + share.rows * slice_height;
  ys.begin = max(ys.begin, slice_row);
  ys.end = min(ys.end, min(slice_row + slice_height, turn.row + plan.tile_height));
  Range xs = clipped_steps(tap_column, kColumns, pad_x, width, width);
  xs.begin = max(xs.begin, turn.column);
  xs.end = min(xs.end, turn.column + plan.tile_width);
  if (ys.begin >= ys.end) return;

  const int first_row = max(turn.row - pad_y, 1 - kRows);
  const int first_column = max(turn.column - pad_x, -plan.x.left);
  // The first step of the slice from the beginning on.
  const int behind = (xs.begin / kStep + plan.column_slices - share.columns) % plan.column_slices;
  const int column = behind == 0 ? xs.begin : xs.begin + (plan.column_slices - behind) * kStep;
  const float* window = pixels + share.image * plan.x.stride +
                        (tap_row + ys.begin - pad_y - first_row) * plan.x.pitch +
                        (tap_column + column - pad_x - first_column);
  const float* kernel = grad + share.image * plan.grad_stride +
                        (ys.begin - turn.row) * plan.grad_pitch + (column - turn.column);
  const int steps = ys.end - ys.begin;
  int left = xs.end - column;
  for (; left >= kStep; left -= plan.step, window += plan.step, kernel += plan.step) {
    add_step<true>(sum, window, plan.x.pitch, kernel, plan.grad_pitch, steps, kStep);
  }
  if (left > 0) {
    add_step<false>(sum, window, plan.x.pitch, kernel, plan.grad_pitch, steps, left);
  }
}

// Copies the turn's part of grad in rows of grad_pitch, without zeros around it.
__device__ void load_grad(float* shared, const CudaConvWeightParams& p, const Plan& plan,
                          const float* grad, const Turn& turn) {
  const int rows = min(plan.tile_height, static_cast<int>(p.height) - turn.row);
  const int columns = min(plan.tile_width, static_cast<int>(p.width) - turn.column);
  for (int i = threadIdx.x / 8; i < turn.count * rows; i += blockDim.x / 8) {
    const int image = i / rows, row = i % rows;
    const float* from = grad + image * p.grad.stride_n + (turn.row + row) * p.grad.stride_h;
    float* to = shared + image * plan.grad_stride + row * plan.grad_pitch;
    for (int x = threadIdx.x % 8; x < columns; x += 8) {
      cp_async<4>(to + x, from + turn.column + x);
    }
  }
}

// Adds the sums of all slices of a tap, in their order, through shared memory.
template <int kRows, int kColumns>
__device__ void write_sums(float* shared, const CudaConvWeightParams& p, const Plan& plan,
                           const float (&sum)[kRows][kColumns], float* out) {
  const int pitch = static_cast<int>(blockDim.x) + kSumPad;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRows * kColumns; ++i) {
    shared[i * pitch + threadIdx.x] = sum[i / kColumns][i % kColumns];
  }
  __syncthreads();
  const int tiles = plan.places.rows * plan.places.columns;
  const int slices = plan.images * plan.row_slices * plan.column_slices / neighbors(plan);
  for (int i = threadIdx.x; i < tiles * kRows * kColumns; i += blockDim.x) {
    const int tile = i % tiles, element = i / tiles;
    const int inner = neighbors(plan), step = tiles * inner;
    const Share share = share_of(plan, tile * inner);
    const int row = share.place.rows * kRows + element / kColumns;
    const int column = share.place.columns * kColumns + element % kColumns;
    if (row >= p.kernel_height || column >= p.kernel_width) continue;
    float total = 0;
    for (int first = tile * inner; first < slices * step; first += step) {
      for (int k = 0; k < inner; ++k) total += shared[element * pitch + first + k];
    }
    out[row * p.kernel_width + column] = total;
  }
}

// A turn and its data. It is computed anew in each turn, because the registers are needed for sums.
struct Source {
  Turn turn;
  const float *x, *grad;  // the channel in the turn's first image
};

// The turn with that number; `count` is 0 if there is none.
__device__ Source source_at(const CudaConvWeightParams& p, const Plan& plan, int number) {
  const int tiles = plan.tiles_y * plan.tiles_x, block = block_anew();
  const int channels = static_cast<int>(p.channels), channel = block % channels;
  const std::int64_t part = block / channels;
  const std::int64_t last = min((part + 1) * plan.part, p.images);
  const std::int64_t image = part * plan.part + std::int64_t{number / tiles} * plan.images;
  const std::int64_t count = min(static_cast<std::int64_t>(plan.images), last - image);
  const int tile = number % tiles;
  Source source;
  source.turn = {static_cast<int>(max(count, std::int64_t{0})),
                 tile / plan.tiles_x * plan.tile_height, tile % plan.tiles_x * plan.tile_width};
  source.x = static_cast<const float*>(p.x.data) + image * p.x.stride_n + channel * p.x.stride_c;
  source.grad =
      static_cast<const float*>(p.grad.data) + image * p.grad.stride_n + channel * p.grad.stride_c;
  return source;
}

template <int kRows, int kColumns>
__global__ void __launch_bounds__(most_threads(kRows, kColumns), 2)
    weight_kernel(CudaConvWeightParams p, Plan plan, float* out) {
  float* pixels = reinterpret_cast<float*>(dynamic_shared());
  float* grad = pixels + plan.x.floats;
  float sum[kRows][kColumns] = {};
  for (int number = 0;; ++number) {
    const Source source = source_at(p, plan, number);
    const Turn& turn = source.turn;
    if (turn.count == 0) break;
    __syncthreads();  // all threads are done with the last turn
    load_grad(grad, p, plan, source.grad, turn);
    fill(pixels, plan.x, source.x, p.x.stride_n, p.x.stride_h, turn.count,
         max(turn.row - p.kernel_height / 2, 1 - kRows),
         max(turn.column - p.kernel_width / 2, -plan.x.left), static_cast<int>(p.height),
         static_cast<int>(p.width));
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    accumulate(sum, pixels, grad, p, plan, turn);
  }
  write_sums(pixels, p, plan, sum,
             out + std::int64_t{block_anew()} * (p.kernel_height * p.kernel_width));
}

constexpr int kSumThreads = 256;

// Adds the partial sums of the parts in order.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const float* partials, float* kernel, std::int64_t n, int splits) {
  const std::int64_t step = std::int64_t{gridDim.x} * kSumThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x; i < n; i += step) {
    float total = 0;
    for (int split = 0; split < splits; ++split) total += partials[split * n + i];
    kernel[i] = total;
  }
}

template <int kRows, int kColumns>
cudaError_t run(const CudaConvWeightParams& p, const Plan& plan) {
  const std::int64_t blocks = p.channels * p.splits;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  float* kernel = static_cast<float*>(p.kernel);
  const Launch where = {static_cast<unsigned>(blocks), static_cast<unsigned>(plan.threads),
                        shared_bytes(plan), p.stream};
  const cudaError_t status =
      launch(where, weight_kernel<kRows, kColumns>, p, plan, p.splits == 1 ? kernel : p.partials);
  if (status != cudaSuccess || p.splits == 1) return status;
  const std::int64_t n = p.channels * p.kernel_height * p.kernel_width;
  const Launch then = {grid_stride_blocks(n, kSumThreads), kSumThreads, 0, p.stream};
  return launch(then, sum_kernel, p.partials, kernel, n, p.splits);
}

}  // namespace

bool fma_can_run(const CudaConvWeightParams& params, const FmaTile&) {
  return params.type == DType::kFloat32;
}

cudaError_t dwconv_fma_weight_cuda(const CudaConvWeightParams& params, const FmaTile&) {
  if (params.channels == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const Plan by_4 = plan_for(params, 4, 4), by_6 = plan_for(params, 6, 4);
  const Plan by_8 = plan_for(params, 8, 4), by_30 = plan_for(params, 6, 5);
  const double least = std::min({by_4.cost, by_6.cost, by_8.cost});
  // Tiles of five columns are aligned only if there is no second one.
  if (by_30.places.columns == 1 && by_30.cost < least) return run<6, 5>(params, by_30);
  if (by_8.cost == least) return run<8, 4>(params, by_8);
  return by_6.cost == least ? run<6, 4>(params, by_6) : run<4, 4>(params, by_4);
}

}  // namespace cba
