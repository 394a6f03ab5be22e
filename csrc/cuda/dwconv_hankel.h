// Depthwise convolution of half-precision images on tensor cores, one input row at a time.
//
// A row X of the input, columns w + s - Q, is a Hankel matrix B[s, w]: constant where s + w is, so
// that the registers of one fragment are those of the next. One product D[q, w] += A[q, s] B[s, w]
// adds the row to all output rows it reaches; slot q holds one of them, and A's row q is the row of
// the kernel that joins the two. When an output row has met its last input row it is written, and
// its slot takes the next one; only the addresses of A's rows move. Multiplications: the kernel's
// sides rounded up to 16, the width to 8.
//
// The weight gradient contracts over columns: dW[r, s] += dY[h - r + P, w] B[w, s] for each input
// row h, with the last KH rows of dY in a ring.
//
// Outside of the image stand zeros, in the kernel's margin too. So a NaN or an infinity in an image
// reaches outputs beyond the kernel, less than 96 rows and 64 columns away, in the same image and
// channel; one in a kernel reaches all outputs of its channel, one in either factor of the weight
// gradient the whole gradient of its channel.
//
// Taps that meet only padding (beyond 2 H - 1 rows, 2 W - 1 columns) are left out.
#pragma once

#include "cuda/dwconv.h"

namespace cba {

// What one warp of the forward kernel computes: `images` images side by side, `columns` * 8 output
// columns of each, `slots` * 16 output rows at a time; the rows of an image are cut into `bands`.
struct HankelTile {
  int slots, columns, images, bands;
};

// What one warp of the weight gradient computes: `rows` * 16 by `columns` * 8 taps, from `steps` *
// 16 columns of `images` images at a time (1, 2, 4 or 8); their rows are cut into `bands`.
struct HankelWeightTile {
  int rows, columns, steps, images, bands;
};

// Whether there is a kernel for the tile, and the tile can do what `p` asks.
bool hankel_can_run(const CudaConvParams& p, const HankelTile& tile);
bool hankel_can_run(const CudaConvWeightParams& p, const HankelWeightTile& tile);

// y = conv(x, kernel) + bias for float16 and bfloat16, accumulated in float32, rounded once; sm_80
// and newer. Returns once the kernel is launched, with the error code of the launch.
cudaError_t dwconv_hankel_cuda(const CudaConvParams& p, const HankelTile& tile);

// The same for the weight gradient; the same bits every time.
cudaError_t dwconv_hankel_weight_cuda(const CudaConvWeightParams& p, const HankelWeightTile& tile);

}  // namespace cba
