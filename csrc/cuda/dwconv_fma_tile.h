// What the float32 kernels of the convolution and of its weight gradient share. Both correlate a
// zero-padded image with a "kernel": the taps, or for the weight gradient the gradient image. A
// thread owns kRows x kColumns neighboring results. It walks down the kernel four columns at a
// time, with kRows rows of the image in registers. Each step loads a row of the image (two LDS.128)
// and four taps (one LDS.128) for 4 * kRows * kColumns multiplications, so that the FMA units and
// not the loads limit the speed.
//
// Each thread walks only over products that one of its results has with the image. Taps are not
// padded, so that a NaN in the image reaches only the results whose window holds it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/dwconv.h"
#include "cuda/ptx.h"

namespace cba {
namespace fma_tile {

constexpr int kStep = 4;           // columns of taps in a step, one 16-byte load
constexpr int kReach = 6;          // the most columns beyond the image that a step reads
constexpr int kShared = 76 << 10;  // bytes, so that two blocks fit on a multiprocessor of sm_80

__host__ __device__ inline int divided_up(int n, int unit) { return (n + unit - 1) / unit; }
__host__ __device__ inline int rounded_up(int n, int unit) { return divided_up(n, unit) * unit; }

// The most threads of a block. With two such blocks on a multiprocessor, each thread has enough
// registers for the window and the sums of its results without spilling.
constexpr int most_threads(int rows, int columns) {
  return rows == 8 || columns == 5 ? 256 : rows == 6 ? 320 : 384;
}

// Rows and columns of thread tiles, which cover a block's results or the taps.
struct Places {
  int rows, columns;
};

// The place with number i in an order that begins at the borders and ends in the middle. Walks of
// the same length are then neighbors, so that the lanes of a warp end together.
__device__ inline int mirrored(int i, int n) { return i % 2 ? n - 1 - i / 2 : i / 2; }

__device__ inline Places mirrored_place(int i, const Places& all) {
  if (all.rows % 2 || all.columns % 2) {
    return {mirrored(i / all.columns, all.rows), mirrored(i % all.columns, all.columns)};
  }
  // Four successive places are mirror images of each other.
  const int four = i / 4, halves = all.columns / 2;
  return {mirrored(four / halves * 2 + i / 2 % 2, all.rows),
          mirrored(four % halves * 2 + i % 2, all.columns)};
}

struct Range {
  int begin, end;
};

// The positions k of the kernel that one of the results first, ..., first + count - 1 multiplies by
// a pixel, that is, first + i + k - pad lies in [0, size) for some i < count.
__host__ __device__ inline Range clipped(int first, int count, int pad, int kernel, int size) {
  const int begin = pad - first - (count - 1), end = size - first + pad;
  return {begin > 0 ? begin : 0, end < kernel ? end : kernel};
}

// The same along a row, in whole steps, but not beyond the end of the kernel.
__device__ inline Range clipped_steps(int first, int count, int pad, int kernel, int size) {
  const Range exact = clipped(first, count, pad, kernel, size);
  return {exact.begin / kStep * kStep, min(rounded_up(max(exact.end, 0), kStep), kernel)};
}

// Counts the instructions of walks over `kernel` rows by a column of `places` thread tiles.
inline double walk_cost(int rows, int columns, int places, int pad, int kernel, int size) {
  constexpr int kExtra = 12, kFirst = 8;  // per step; per row before the first step
  constexpr int kMost = 1024;             // places that are counted; further ones are alike
  const int step = kStep * rows * columns + kExtra, counted = std::min(places, kMost);
  double cost = 0;
  for (int place = 0; place < counted; ++place) {
    const Range range = clipped(place * rows, rows, pad, kernel, size);
    const int steps = std::max(range.end - range.begin, 0);
    cost += static_cast<double>(steps) * step + rows * kFirst;
  }
  return cost * places / counted;
}

// How many lanes are taken for each one that works. Neighboring images have loops of the same
// length; neighboring columns wait for each other, about a quarter of the time for the shapes of
// RepLKNet.
inline double lanes_per_work(int threads, int working, bool by_image) {
  return (by_image ? 1.0 : 1.25) * threads / working;
}

// Images with their padding in shared memory: each has `rows` rows of `pitch` floats, and `stride`
// floats lie between the beginnings of two images. The zeros at the end of a row are also those
// before the next row, and the zeros below an image those above the next image. Threads may read
// further for results outside the image, which are dropped; the tile has room for that at its end.
struct PaddedTile {
  int images, rows, pitch, stride, floats;
  int left;  // columns of zeros
};

// The columns of zeros on the left: congruent to `pad` modulo 4, so that windows at multiples of 4
// are aligned.
inline int columns_left(int pad) { return pad <= kReach ? pad : kReach + (pad - kReach) % kStep; }

// A tile of whole images. Successive images begin `units` times 16 bytes apart, modulo the 128
// bytes of all banks.
inline PaddedTile whole_images(int images, int height, int width, int pad_y, int pad_x,
                               int kernel_rows, int units) {
  PaddedTile tile;
  tile.images = images, tile.left = columns_left(pad_x);
  tile.rows = height + std::min(pad_y, kernel_rows - 1);
  tile.pitch = rounded_up(width + tile.left, 4);
  tile.stride = tile.rows * tile.pitch;
  while (images > 1 && (tile.stride / 4 - units) % 8) tile.stride += 4;
  tile.floats = images * tile.stride + kernel_rows * tile.pitch;
  return tile;
}

// A part of an image of `height` x `width` for results_y x results_x results, rounded up to thread
// tiles, and a kernel of kernel_y x kernel_x; `wide` if it does not have all columns of the image.
inline PaddedTile image_part(int results_y, int results_x, int kernel_y, int kernel_x, int height,
                             int width, int pad_x, int kernel_rows, bool wide) {
  PaddedTile tile;
  tile.images = 1, tile.left = columns_left(pad_x);
  tile.rows = std::min(results_y + kernel_y - 1, height + 2 * (kernel_rows - 1));
  tile.pitch = wide ? std::min(results_x + kernel_x, width + 2 * tile.left) : width + tile.left;
  tile.pitch = rounded_up(tile.pitch, 4);
  tile.stride = tile.floats = (tile.rows + 1) * tile.pitch;
  return tile;
}

// Writes zeros to the tile, and starts to copy the rectangle at (first_row, first_column) of
// `count` images, of which the first is at `source`. All threads of the block must take part,
// because there is a barrier between the two.
__device__ inline void fill(float* shared, const PaddedTile& tile, const float* source,
                            std::int64_t stride_n, std::int64_t stride_h, int count, int first_row,
                            int first_column, int height, int width) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < tile.floats / 4; i += threads) {
    reinterpret_cast<float4*>(shared)[i] = make_float4(0, 0, 0, 0);
  }
  __syncthreads();
  // Eight threads copy each row that has pixels, 32 bytes at a time.
  const int top = max(first_row, 0), rows = min(first_row + tile.rows, height) - top;
  const int begin = max(first_column, 0), end = min(first_column + tile.pitch, width);
  for (int i = thread / 8; i < count * rows; i += threads / 8) {
    const int image = i / rows, row = top + i % rows;
    const float* from = source + image * stride_n + row * stride_h;
    float* to = shared + image * tile.stride + (row - first_row) * tile.pitch - first_column;
    for (int x = begin + thread % 8; x < end; x += 8) cp_async<4>(to + x, from + x);
  }
}

__device__ __forceinline__ void load_row(float (&row)[8], const float* at) {
  const float4 low = reinterpret_cast<const float4*>(at)[0];
  const float4 high = reinterpret_cast<const float4*>(at)[1];
  row[0] = low.x, row[1] = low.y, row[2] = low.z, row[3] = low.w;
  row[4] = high.x, row[5] = high.y, row[6] = high.z, row[7] = high.w;
}

// sum[i][j] += kernel[k][t] * image[k + i][j + t] over k < rows and t < taps, in this order. `rows`
// is at least 1; with kWhole, `taps` is 4. One row beyond the end of the kernel is read.
template <bool kWhole, int kRows, int kColumns>
__device__ __forceinline__ void add_step(float (&sum)[kRows][kColumns], const float* image,
                                         int pitch, const float* kernel, int kernel_pitch, int rows,
                                         int taps) {
  static_assert(kColumns + kStep - 1 <= 8, "a window's row is two loads");
  float window[kRows][8];
#pragma unroll
  for (int i = 0; i < kRows - 1; ++i, image += pitch) load_row(window[i], image);
  float4 next = *reinterpret_cast<const float4*>(kernel);
  while (rows > 0) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {  // row i of the image's window is in window[(u + i) % kRows]
      if (rows-- == 0) break;
      load_row(window[(u + kRows - 1) % kRows], image);
      image += pitch;
      const float tap[kStep] = {next.x, next.y, next.z, next.w};
      kernel += kernel_pitch;
      next = *reinterpret_cast<const float4*>(kernel);
#pragma unroll
      for (int t = 0; t < kStep; ++t) {
        if (!kWhole && t >= taps) break;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            const float pixel = window[(u + i) % kRows][j + t];
            sum[i][j] = __fmaf_rn(tap[t], pixel, sum[i][j]);
          }
        }
      }
    }
  }
}

}  // namespace fma_tile
}  // namespace cba
