// Loads lines of images for the tensor cores: which part of an image a block reads, how it is
// copied to shared memory, and how it is transposed for a standing strip.
#pragma once

#include <cstdint>

#include "cuda/ptx.h"

namespace cba {
namespace {

constexpr int kStripWarps = 4, kStripThreads = 32 * kStripWarps;
constexpr int kStripMargin = 32;  // inputs on each side of the outputs that are read

// The arguments of the kernel. Sizes are in elements except for bytes. "Along" and "across" are the
// strip's directions; lines are numbered across.
template <class Half>
struct StripPlan {
  const Half* x;
  Half* y;
  const Half* kernel;
  const Half* bias;
  std::int64_t x_stride[3], y_stride[3], images;
  int height, width;
  bool standing;                      // the strip is along columns
  int taps, first_tap, tap_step;      // taps along that can meet the image; tap_step in memory
  int lines, line_step, kernel_size;  // taps across
  bool turned, relu;
  int tile_along, tile_lines, tile_images;  // what a block computes at a time
  int along_tiles, line_tiles, parts;
  int pitch;                     // lines from one image to the next
  int groups, groups_per_image;  // of 16 lines; if the two are equal, groups cross images
  int spans;
  int row_bytes, tile_bytes;                // of the lines that the tensor cores read
  int staged_row_bytes, staged_image_rows;  // of images before they are transposed
  int load_bytes, row_threads;  // bytes of a copy; threads that copy a row, a power of 2
  int store_bytes;
};

// The bytes of a row of `elements` in shared memory: an odd multiple of 16, so that pieces of 16
// bytes of eight rows lie in different banks.
__host__ __device__ constexpr int strip_row_bytes(int elements) {
  return (elements + 15) / 16 * 32 + 16;
}

// The part of every image that a block reads, and the part that it computes.
struct StripCut {
  int first_along, first_line;   // the first output
  int along_begin, along_end;    // what is read along the strip, multiples of 16
  int row_begin, row_end;        // the rows of the images that are read
  int column_begin, column_end;  // the columns; column_begin is a multiple of 8
};

// The cut of this block. It is computed wherever it is needed, because the loop over products needs
// the registers.
template <int kAcross, class Half>
__device__ __forceinline__ StripCut strip_cut(const StripPlan<Half>& p) {
  const int tile = block_anew() / p.parts % (p.along_tiles * p.line_tiles);
  StripCut c;
  c.first_along = tile % p.along_tiles * p.tile_along;
  c.first_line = tile / p.along_tiles * p.tile_lines;
  const int length = p.standing ? p.height : p.width, lines = p.standing ? p.width : p.height;
  c.along_begin = max(c.first_along - kStripMargin, 0);
  c.along_end = min(c.first_along + p.tile_along + kStripMargin, (length + 15) / 16 * 16);
  const int along_end = min(c.along_end, length);
  const int line_begin = max(c.first_line - kAcross / 2, 0);
  const int line_end = min(c.first_line + p.tile_lines + kAcross / 2, lines);
  c.row_begin = p.standing ? c.along_begin : line_begin;
  c.row_end = p.standing ? along_end : line_end;
  c.column_begin = p.standing ? line_begin / 8 * 8 : c.along_begin;
  c.column_end = p.standing ? line_end : along_end;
  return c;
}

// Starts to copy the cut of `count` images to shared memory; x is the first image.
template <int kBytes, class Half>
__device__ __forceinline__ void strip_bring(unsigned char* to, int image_bytes, int row_bytes,
                                            const StripPlan<Half>& p, const StripCut& c,
                                            const Half* x, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = c.row_end - c.row_begin, bytes = 2 * (c.column_end - c.column_begin);
  x += c.row_begin * p.x_stride[2] + c.column_begin;
  for (int image = 0; image < count; ++image, x += p.x_stride[0], to += image_bytes) {
    for (int row = thread / p.row_threads; row < rows; row += kStripThreads / p.row_threads) {
      const auto* from = reinterpret_cast<const unsigned char*>(x + row * p.x_stride[2]);
      unsigned char* row_to = to + row * row_bytes;
      for (int at = kBytes * (thread % p.row_threads); at < bytes; at += kBytes * p.row_threads) {
        if constexpr (kBytes == 2) {
          *reinterpret_cast<std::uint16_t*>(row_to + at) =
              *reinterpret_cast<const std::uint16_t*>(from + at);
        } else {
          cp_async<kBytes>(row_to + at, from + at, min(kBytes, bytes - at));
        }
      }
    }
  }
}

// Transposes `images` staged images into lines, 16 rows by 16 columns at a time.
template <int kAcross, class Half>
__device__ __forceinline__ void strip_transpose(unsigned char* lines, const unsigned char* staged,
                                                const StripPlan<Half>& p, const StripCut& c,
                                                int images) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int down = (c.row_end - c.row_begin + 15) / 16;
  const int wide = (c.column_end - c.column_begin + 15) / 16;
  const int first = max(c.first_line - kAcross / 2, 0);  // the first line that is needed
  for (int i = warp; i < images * down * wide; i += kStripWarps) {
    const int column = 16 * (i % wide), row = i / wide % down * 16, image = i / wide / down;
    std::uint32_t square[4];
    __syncwarp();  // ldmatrix needs all lanes at once
    ldmatrix_x4_trans(
        square, staged + (image * p.staged_image_rows + row + lane % 16) * p.staged_row_bytes +
                    2 * column + lane / 16 * 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int line = c.column_begin + column + 8 * half + lane / 4;
      if (line < first || line >= c.column_end) continue;
      auto* to = reinterpret_cast<std::uint32_t*>(
          lines + (image * p.pitch + line - c.first_line + kAcross / 2) * p.row_bytes + 2 * row);
      to[lane % 4] = square[2 * half];
      to[lane % 4 + 4] = square[2 * half + 1];
    }
  }
}

}  // namespace
}  // namespace cba
