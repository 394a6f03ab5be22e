// The interface of the depthwise convolution kernels of an instruction set. No C++ library header
// may be included here, see csrc/README.md. Sizes and strides are in elements.
//
// All three directions are products of planes A and B of each channel:
//
//   forward      A = x,    B = kernel,                       out = y
//   grad_x       A = grad, B = kernel turned by 180 degrees, out = gx
//   grad_weight  A = x,    B = grad, summed over images,     out = kernel
//
// A kernel computes a group of Vec::kWidth channels at a time, one channel in each lane.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace cba {

// A tensor (N,C,H,W) of which stride_c or stride_w is 1. A kernel (C,1,kh,kw) counts as
// (1,C,kh,kw).
struct Planes {
  void* data;
  DType type;
  int64_t height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// A transform of length n along one axis by the prime factor algorithm. n = f0 * f1 * f2 with
// pairwise coprime factors, and sample t has the position (p0 * f1 + p1) * f2 + p2 with p_i = t *
// (n / f_i)^-1 mod f_i.
struct DftPlan {
  int n;
  int factors[3];
  const int32_t* conjugate;  // [n] position of the opposite frequency
  const int32_t* half;       // [num_half] one position of each pair of opposite frequencies
  int num_half;
};

// Where the samples of a range lie in a transform: the number of the sample at each position,
// counted from `begin`, or `count` for none (an input is zero there, an output is dropped).
struct AxisRange {
  int64_t begin;
  int count;
  const int32_t* sample;  // [n]
};

// A piece of an axis: the ranges of the inputs A and B of a product, and of its output.
struct AxisTile {
  AxisRange a, b, out;
};

struct AxisPlan {
  DftPlan dft;
  const AxisTile* tiles;
  int num_tiles;
  int max_count;  // the most samples of a range of any tile
};

struct ConvParams {
  Planes a, b, out;
  const float* bias;  // [C] or null
  int64_t images, channels;
  bool reduce;  // grad_weight: sum over images and tiles
  float floor;  // smaller results are raised to it: 0 for a ReLU, else minus infinity
};

// Transforms along both axes.
struct FftTask {
  ConvParams conv;
  AxisPlan width, height;
};

// Transforms along one axis and sums over the taps along the other.
struct StripTask {
  ConvParams conv;
  AxisPlan axis;
  bool along_height;  // the axis of the transform
  bool flipped;       // the taps are turned
};

// Sums over the taps along both axes.
struct DirectTask {
  ConvParams conv;
  bool flipped;  // B is turned by 180 degrees
};

// The functions of an algorithm. A thread calls prepare() once and then run() for ranges of items.
// Items are pairs (channel group, image) in this order, or channel groups if `reduce` is set.
template <class Task>
struct ConvKernel {
  int64_t (*scratch)(const Task&);  // floats of memory that a thread needs
  void (*prepare)(const Task&, float* scratch);
  void (*run)(const Task&, int64_t begin, int64_t end, float* scratch);
};

struct ConvKernels {
  int width;  // channels per group
  ConvKernel<FftTask> fft;
  ConvKernel<StripTask> strip;
  ConvKernel<DirectTask> direct;

  static const ConvKernels kBaseline, kAvx2, kAvx512;
};

}  // namespace cba
