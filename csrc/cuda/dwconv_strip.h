// Depthwise convolution of half-precision images with strips on tensor cores: kernels of at most 7
// taps across and 63 along, forward and input gradient. dwconv_hankel.h, which has their weight
// gradient, would round the 7 up to 16.
//
// Along the strip each line of the kernel (there are as many as taps across) is a band:
//   D[i, n] += Z[i + r, k] T_r[k, n],   T_r[k, n] = kernel[r][k - n + Q],   k - n in [-Q, Q]
// for 16 lines i of the image, 8 outputs n along the strip, 16 inputs k. Cut into 8x8 matrices, T_r
// is a Toeplitz matrix of Toeplitz matrices, and only 2 R + 1 of them are not zero, R =
// (Q + 7) / 8: a register of a warp each, and a warp holds all of them for the whole of its life.
// What it reads are fragments of Z, the lines of the image with margins of zeros, which lie in
// shared memory with the strip's direction side by side: as they come from global memory for a
// lying strip, transposed once in shared memory for a standing one. Fragments outside the image are
// left out.
//
// Counted for SLaK at 384. Products: of 16x8x16, in terms of the multiplications needed; the same
// for dwconv_hankel.h. Rows: of 16 bytes, read by ldmatrix for a product; a multiprocessor reads
// about 15 in the time of a product, at 500 TFLOP/s of an H200.
//                  products   Hankel       rows
//   5x51, 96x96      1.25       4.0         6.7
//   51x5, 96x96      1.25       4.0         6.7
//   5x49, 48x48      0.87       4.2         6.0
//   49x5, 48x48      0.87       3.1         6.0
//   5x47, 24x24      0.74       3.3        10.7
//   47x5, 24x24      0.91       2.2        10.7
// At 48x48 and 24x24 memory is the limit then.
//
// An image's NaN or infinity reaches outputs less than 48 away along the strip and less than 4
// across, in the same image and channel; one in a kernel reaches all outputs of its channel.
//
// Taps that meet only padding (beyond 2 W - 1 along the strip) are left out.
#pragma once

#include "cuda/dwconv.h"

namespace cba {

// What one block of threads holds at a time: of `images` images (1 unless all their lines are
// held) `lines` lines, a multiple of 16 unless all, and `spans` times 8 * `columns` outputs along
// them; the block does this for one of the `parts` of the batch. A warp takes 16 lines and 8 *
// `columns` outputs at a time.
struct StripTile {
  int columns, spans, lines, images, parts;
};

// Whether there is a kernel for the tile, and the tile can do what `p` asks.
bool strip_can_run(const CudaConvParams& p, const StripTile& tile);

// y = conv(x, kernel) + bias for float16 and bfloat16, accumulated in float32, rounded once; sm_80
// and newer. The strip lies along the longer side of the kernel. Returns once the kernel is
// launched, with the error code of the launch.
cudaError_t dwconv_strip_cuda(const CudaConvParams& p, const StripTile& tile);

}  // namespace cba
