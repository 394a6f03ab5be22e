// What the depthwise convolution kernels of an instruction set take and provide; no C++ library
// header, see csrc/README.md. Sizes and strides are in elements.
//
// All three directions are a product of planes A and B of each channel:
//
//   forward      A = x,    B = kernel,                       out = y
//   grad_x       A = grad, B = kernel turned by 180 degrees, out = gx
//   grad_weight  A = x,    B = grad, summed over images,     out = kernel
//
// A group of Vec::kWidth channels is worked on at a time, one channel in each lane.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace cba {

// A tensor (N,C,H,W); one of stride_c and stride_w is 1. A kernel (C,1,kh,kw) is one of N = 1.
struct Planes {
  void* data;
  DType type;
  int64_t height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// A transform of length n along one axis, by the prime factor algorithm: n = f0 * f1 * f2, pairwise
// coprime, sample t at position (p0 * f1 + p1) * f2 + p2 with p_i = t * (n / f_i)^-1 mod f_i.
struct DftPlan {
  int n;
  int factors[3];
  const int32_t* conjugate;  // [n] position of the opposite frequency
  const int32_t* half;       // [num_half] one position of each pair of opposite frequencies
  int num_half;
};

// Where a range of samples sits in a transform: the sample at each position, counted from `begin`;
// `count` where there is none (inputs: a zero; outputs: dropped).
struct AxisRange {
  int64_t begin;
  int count;
  const int32_t* sample;  // [n]
};

// One piece of an axis: inputs A and B of a product, and its output.
struct AxisTile {
  AxisRange a, b, out;
};

struct AxisPlan {
  DftPlan dft;
  const AxisTile* tiles;
  int num_tiles;
  int max_count;  // of any range of any tile
};

struct ConvParams {
  Planes a, b, out;
  const float* bias;  // [C] or null
  int64_t images, channels;
  bool reduce;  // grad_weight: sum over images and tiles
};

// The 2-D transform: 48 row transforms of pairs of rows, 57 column transforms, ... for 96 x 96.
struct FftTask {
  ConvParams conv;
  AxisPlan width, height;
};

// Transform along one axis, taps along the other.
struct StripTask {
  ConvParams conv;
  AxisPlan axis;
  bool along_height;  // the axis of the transform
  bool flipped;       // the taps are turned
};

struct DirectTask {
  ConvParams conv;
  bool flipped;  // B is turned by 180 degrees
};

// One of the algorithms. A thread calls prepare() once and run() for ranges of items: pairs
// (channel group, image) in this order, or channel groups where `reduce` is set.
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
