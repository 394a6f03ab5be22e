#include "cuda/dwconv_fma.h"
#include "cuda/dwconv_fma_tile.h"
#include "cuda/launch.h"

namespace cba {
namespace {

using namespace fma_tile;

constexpr int kColumns = 4;

// A block computes a tile of the results of some images of one channel. Planes that fit into shared
// memory are one tile, and a block takes several images; other planes are cut.
struct Plan {
  PaddedTile tile;
  Places places;  // thread tiles of an image
  int tiles_y, tiles_x;
  int kernel_pitch;
  bool by_image;        // neighboring lanes take images, else columns
  bool whole_vectors;   // four columns of y are aligned
  std::int64_t groups;  // groups of images
  double cost;
  int threads;
};

std::size_t kernel_floats(const CudaConvParams& p, const Plan& plan) {
  return static_cast<std::size_t>(p.kernel_height + 1) * plan.kernel_pitch;
}

std::size_t shared_bytes(const CudaConvParams& p, const Plan& plan) {
  return sizeof(float) * (kernel_floats(p, plan) + plan.tile.floats);
}

// Cuts a plane into tiles of at most 128 thread tiles, so that some blocks compute while others
// copy.
void cut_plane(const CudaConvParams& p, int rows, int height, int width, Plan& plan) {
  constexpr int kMostColumns = 32, kThreadTiles = 128;
  const Places all = {divided_up(height, rows), divided_up(width, kColumns)};
  plan.tiles_x = divided_up(all.columns, kMostColumns);
  plan.places.columns = divided_up(all.columns, plan.tiles_x);
  int most = kThreadTiles / plan.places.columns;
  do {
    plan.tiles_y = divided_up(all.rows, most);
    plan.places.rows = divided_up(all.rows, plan.tiles_y);
    plan.tile =
        image_part(plan.places.rows * rows, plan.places.columns * kColumns, p.kernel_height,
                   plan.kernel_pitch, height, width, p.kernel_width / 2, rows, plan.tiles_x > 1);
    most /= 2;
  } while (shared_bytes(p, plan) > kShared && most > 0);
}

// Tries to give each block `images` whole images; returns false if they do not fit. `plan` is
// replaced unless too many places for images would stay empty.
bool take_images(const CudaConvParams& p, int images, int rows, int height, int width, Plan& plan) {
  Plan larger = plan;
  larger.places = {divided_up(height, rows), divided_up(width, kColumns)};
  const std::int64_t threads = std::int64_t{images} * larger.places.rows * larger.places.columns;
  if (threads > most_threads(rows, kColumns)) return false;
  larger.by_image = images >= 8;
  larger.tiles_y = larger.tiles_x = 1;
  larger.tile = whole_images(images, height, width, p.kernel_height / 2, p.kernel_width / 2, rows,
                             larger.by_image ? 1 : larger.places.columns);
  if (shared_bytes(p, larger) > kShared) return false;
  larger.groups = (p.images + images - 1) / images;
  if (8 * (larger.groups * images - p.images) <= p.images) plan = larger;  // few stay empty
  return true;
}

Plan plan_for(const CudaConvParams& p, int rows) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  Plan plan = {};
  plan.kernel_pitch = rounded_up(p.kernel_width, kStep);
  plan.groups = p.images;
  for (int images = 1; take_images(p, images, rows, height, width, plan);) images *= 2;
  if (plan.tiles_y == 0) cut_plane(p, rows, height, width, plan);
  const int working = plan.tile.images * plan.places.rows * plan.places.columns;
  plan.threads = rounded_up(working, 32);
  plan.cost = walk_cost(rows, kColumns, divided_up(height, rows), p.kernel_height / 2,
                        p.kernel_height, height) *
              lanes_per_work(plan.threads, working, plan.by_image);
  const std::int64_t steps = p.y.stride_n | p.y.stride_c | p.y.stride_h;
  plan.whole_vectors = steps % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.y.data) % 16 == 0;
  return plan;
}

// Loads the taps of a channel to shared memory, in rows of kernel_pitch.
__device__ void load_kernel(float* shared, const CudaConvParams& p, const Plan& plan, int channel) {
  const int taps = p.kernel_height * p.kernel_width;
  const float* kernel = static_cast<const float*>(p.kernel) + std::int64_t{channel} * taps;
  for (int i = threadIdx.x; i < p.kernel_height * plan.kernel_pitch; i += blockDim.x) {
    const int row = i / plan.kernel_pitch, column = i % plan.kernel_pitch;
    if (column >= p.kernel_width) continue;
    const int tap = row * p.kernel_width + column;
    shared[i] = kernel[p.turned ? taps - 1 - tap : tap];
  }
}

// What a block computes: a tile of `count` images from `image` on.
struct Block {
  int image, channel, count, row, column;
};

template <int kRows>
__device__ Block block_at(int index, const CudaConvParams& p, const Plan& plan) {
  // 32-bit divisions are enough, because no factor exceeds the number of blocks.
  const int groups = static_cast<int>(plan.groups);
  const int tile_x = index % plan.tiles_x, row_of_tiles = index / plan.tiles_x;
  const int tile_y = row_of_tiles % plan.tiles_y, group = row_of_tiles / plan.tiles_y;
  Block block;
  block.image = group % groups * plan.tile.images;
  block.channel = group / groups;
  block.count = min(plan.tile.images, static_cast<int>(p.images) - block.image);
  block.row = tile_y * plan.places.rows * kRows;
  block.column = tile_x * plan.places.columns * kColumns;
  return block;
}

// The tile of a thread within the block's images; `image` is beyond them if the thread has nothing
// to do.
struct Spot {
  int image, row, column;
};

template <int kRows>
__device__ Spot spot_at(int thread, const CudaConvParams& p, const Plan& plan, const Block& block) {
  Spot spot;
  Places place;
  if (plan.by_image) {
    spot.image = thread % plan.tile.images;
    place = mirrored_place(thread / plan.tile.images, plan.places);
  } else {
    const int run = thread / plan.places.columns;
    spot.image = run % plan.tile.images;
    place = {run / plan.tile.images, thread % plan.places.columns};
  }
  spot.row = block.row + place.rows * kRows;
  spot.column = block.column + place.columns * kColumns;
  const int thread_tiles = plan.tile.images * plan.places.rows * plan.places.columns;
  if (thread >= thread_tiles || spot.row >= p.height || spot.column >= p.width) {
    spot.image = block.count;
  }
  return spot;
}

template <int kRows>
__device__ __forceinline__ void accumulate(float (&sum)[kRows][kColumns], const float* pixels,
                                           const float* taps, const CudaConvParams& p,
                                           const Plan& plan, const Spot& spot, int first_row,
                                           int first_column) {
  const int pad_y = p.kernel_height / 2, pad_x = p.kernel_width / 2;
  const Range ys = clipped(spot.row, kRows, pad_y, p.kernel_height, static_cast<int>(p.height));
  const Range xs =
      clipped_steps(spot.column, kColumns, pad_x, p.kernel_width, static_cast<int>(p.width));
  const float* window = pixels + spot.image * plan.tile.stride +
                        (spot.row + ys.begin - pad_y - first_row) * plan.tile.pitch +
                        (spot.column + xs.begin - pad_x - first_column);
  const float* kernel = taps + ys.begin * plan.kernel_pitch + xs.begin;
  const int steps = ys.end - ys.begin;
  int left = xs.end - xs.begin;
  for (; left >= kStep; left -= kStep, window += kStep, kernel += kStep) {
    add_step<true>(sum, window, plan.tile.pitch, kernel, plan.kernel_pitch, steps, kStep);
  }
  if (left > 0) {
    add_step<false>(sum, window, plan.tile.pitch, kernel, plan.kernel_pitch, steps, left);
  }
}

template <int kRows>
__device__ void store(const CudaConvParams& p, const Plan& plan,
                      const float (&sum)[kRows][kColumns]) {
  const Block block = block_at<kRows>(block_anew(), p, plan);
  const Spot spot = spot_at<kRows>(thread_anew(), p, plan, block);
  const float bias = p.bias ? static_cast<const float*>(p.bias)[block.channel] : 0.0f;
  float* y = static_cast<float*>(p.y.data) + std::int64_t{block.image + spot.image} * p.y.stride_n +
             block.channel * p.y.stride_c + spot.row * p.y.stride_h + spot.column;
  const std::int64_t rows = p.height - spot.row, columns = p.width - spot.column;
  const bool vector = plan.whole_vectors && columns >= kColumns;
  const auto finished = [&](float value) {
    return p.relu ? rectified(value + bias) : value + bias;
  };
#pragma unroll
  for (int i = 0; i < kRows; ++i, y += p.y.stride_h) {
    if (i >= rows) break;
    if (vector) {
      *reinterpret_cast<float4*>(y) = make_float4(finished(sum[i][0]), finished(sum[i][1]),
                                                  finished(sum[i][2]), finished(sum[i][3]));
      continue;
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (j < columns) y[j] = finished(sum[i][j]);
    }
  }
}

template <int kRows>
__global__ void __launch_bounds__(most_threads(kRows, kColumns), 2)
    convolve_kernel(CudaConvParams p, Plan plan) {
  float* taps = reinterpret_cast<float*>(dynamic_shared());
  float* pixels = taps + (p.kernel_height + 1) * plan.kernel_pitch;
  const Block block = block_at<kRows>(static_cast<int>(blockIdx.x), p, plan);
  // Where the tile in shared memory begins.
  const int first_row = max(block.row - p.kernel_height / 2, 1 - kRows);
  const int first_column = max(block.column - p.kernel_width / 2, -plan.tile.left);
  const float* x = static_cast<const float*>(p.x.data) + block.image * p.x.stride_n +
                   block.channel * p.x.stride_c;
  load_kernel(taps, p, plan, block.channel);
  fill(pixels, plan.tile, x, p.x.stride_n, p.x.stride_h, block.count, first_row, first_column,
       static_cast<int>(p.height), static_cast<int>(p.width));
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const Spot spot = spot_at<kRows>(static_cast<int>(threadIdx.x), p, plan, block);
  if (spot.image >= block.count) return;
  float sum[kRows][kColumns] = {};
  accumulate(sum, pixels, taps, p, plan, spot, first_row, first_column);
  store(p, plan, sum);
}

template <int kRows>
cudaError_t run(const CudaConvParams& p, const Plan& plan) {
  const std::int64_t tiles = std::int64_t{plan.tiles_y} * plan.tiles_x;
  const std::int64_t blocks = p.channels * plan.groups * tiles;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const Launch where = {static_cast<unsigned>(blocks), static_cast<unsigned>(plan.threads),
                        shared_bytes(p, plan), p.stream};
  return launch(where, convolve_kernel<kRows>, p, plan);
}

}  // namespace

bool fma_can_run(const CudaConvParams& params, const FmaTile&) {
  return params.type == DType::kFloat32;
}

cudaError_t dwconv_fma_cuda(const CudaConvParams& params, const FmaTile&) {
  if (params.images == 0 || params.channels == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const Plan by_4 = plan_for(params, 4), by_6 = plan_for(params, 6), by_8 = plan_for(params, 8);
  if (by_8.cost <= std::min(by_6.cost, by_4.cost)) return run<8>(params, by_8);
  return by_6.cost <= by_4.cost ? run<6>(params, by_6) : run<4>(params, by_4);
}

}  // namespace cba
