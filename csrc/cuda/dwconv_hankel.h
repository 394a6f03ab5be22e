// Depthwise convolution of half-precision images on tensor cores, one input row at a time.
//
// A row X of the input is laid out as a Hankel matrix B[s, w] = X[w + s - Q]. It is constant along
// s + w, so that a fragment shares registers with the next one. D[q, w] += A[q, s] B[s, w] is a
// product that adds the row to all output rows it reaches. Slot q holds one of these; row q of A is
// the row of the kernel that connects the two. When an output row has met its last input row, it is
// stored and its slot takes the next one; only the addresses of A's rows change. The products cover
// the kernel with its sides rounded up to 16, and the image with its width rounded up to 8.
//
// The weight gradient sums over columns: dW[r, s] += dY[h - r + P, w] B[w, s] for each input row h,
// with the last KH rows of dY in a ring.
//
// The image and the kernel are padded with zeros. So a NaN or an infinity in an image also reaches
// outputs beyond the kernel, less than 96 rows and 64 columns away in the same image and channel.
// One in a kernel reaches all outputs of its channel, and one in a factor of the weight gradient
// reaches the whole gradient of its channel.
//
// Taps that meet only padding (beyond 2 H - 1 rows or 2 W - 1 columns) are left out.
#pragma once

#include "cuda/dwconv.h"

namespace cba {

// What a warp of the forward kernel computes: `images` images side by side, `columns` * 8 output
// columns of each, and `slots` * 16 output rows at a time. The rows of an image are cut into
// `bands`.
struct HankelTile {
  int slots, columns, images, bands;
};

// What a warp of the weight gradient computes: `rows` * 16 by `columns` * 8 taps, from `steps` * 16
// columns of `images` images at a time (1, 2, 4 or 8). The rows of an image are cut into `bands`.
struct HankelWeightTile {
  int rows, columns, steps, images, bands;
};

// Says whether there is a kernel for the tile and the tile can compute `p`.
bool hankel_can_run(const CudaConvParams& p, const HankelTile& tile);
bool hankel_can_run(const CudaConvWeightParams& p, const HankelWeightTile& tile);

// Computes y = conv(x, kernel) + bias for float16 and bfloat16, accumulated in float32 and rounded
// once, on sm_80 and newer. Returns the error code of the launch without waiting for the kernel.
cudaError_t dwconv_hankel_cuda(const CudaConvParams& p, const HankelTile& tile);

// The same for the weight gradient. The result has the same bits every time.
cudaError_t dwconv_hankel_weight_cuda(const CudaConvWeightParams& p, const HankelWeightTile& tile);

}  // namespace cba
