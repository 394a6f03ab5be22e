// Depthwise convolution of half-precision images with strips on tensor cores: kernels of at most 7
// taps across and 63 along, forward and input gradient. dwconv_hankel.h, which computes their
// weight gradient, would round the 7 up to 16.
//
// A strip lies if its long side is along rows, and stands if it is along columns. Along the strip
// each line of the kernel (there are as many lines as taps across) is a band:
//   D[i, n] += Z[i + r, k] T_r[k, n],   T_r[k, n] = kernel[r][k - n + Q],   k - n in [-Q, Q]
// for 16 lines i of the image, 8 outputs n along the strip, and 16 inputs k. Cut into 8x8 matrices,
// T_r is a Toeplitz matrix of Toeplitz matrices, of which only 2 R + 1 are not zero, with
// R = (Q + 7) / 8. Each of these takes a register of a warp, and a warp keeps all of them. It reads
// fragments of Z, the lines of the image with margins of zeros, from shared memory, where they are
// contiguous along the strip. A lying strip has them as they come from global memory; for a
// standing strip they are transposed once in shared memory. Fragments outside the image are left
// out.
//
// These figures were counted for SLaK at 384 pixels. Products are those of 16x8x16, relative to the
// multiplications needed, here and in dwconv_hankel.h. Rows are those of 16 bytes that ldmatrix
// reads for a product; a multiprocessor reads about 15 in the time of a product, at 500 TFLOP/s of
// an H200.
//                  products   Hankel       rows
//   5x51, 96x96      1.25       4.0         6.7
//   51x5, 96x96      1.25       4.0         6.7
//   5x49, 48x48      0.87       4.2         6.0
//   49x5, 48x48      0.87       3.1         6.0
//   5x47, 24x24      0.74       3.3        10.7
//   47x5, 24x24      0.91       2.2        10.7
// At 48x48 and 24x24 memory limits the speed.
//
// A NaN or an infinity in an image reaches outputs less than 48 away along the strip and less than
// 4 across, in the same image and channel. One in a kernel reaches all outputs of its channel.
//
// Taps that meet only padding (beyond 2 W - 1 along the strip) are left out.
#pragma once

#include "cuda/dwconv.h"

namespace cba {

// What a block computes at a time: `lines` lines of `images` images, and `spans` times 8 *
// `columns` outputs along them. `lines` is a multiple of 16 or all lines; `images` is 1 unless it
// is all lines. The batch is divided into `parts`, and a block computes one part. A warp takes 16
// lines and 8 * `columns` outputs at a time.
struct StripTile {
  int columns, spans, lines, images, parts;
};

// Says whether there is a kernel for the tile and the tile can compute `p`.
bool strip_can_run(const CudaConvParams& p, const StripTile& tile);

// Computes y = conv(x, kernel) + bias for float16 and bfloat16, accumulated in float32 and rounded
// once, on sm_80 and newer. The strip is along the longer side of the kernel. Returns the error
// code of the launch without waiting for the kernel.
cudaError_t dwconv_strip_cuda(const CudaConvParams& p, const StripTile& tile);

}  // namespace cba
