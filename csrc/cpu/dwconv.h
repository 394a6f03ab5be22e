// Depthwise convolution with zero "same" padding and its two gradients (float32, bfloat16, float16;
// float32 arithmetic).
#pragma once

#include <cstdint>
#include <string>

#include "cpu/dwconv_kernels.h"
#include "cpu/isa.h"

namespace cba {

enum class ConvAlgorithm { kFft, kDirect };

ConvAlgorithm parse_conv_algorithm(const std::string& name);

struct ConvCall {
  std::int64_t images, channels;
  ConvAlgorithm algorithm;
  Isa isa;
  int num_threads;
};

// y = conv(x, kernel) + bias; bias: C float32 values or null. `turned`: the kernel is turned by 180
// degrees, which makes it the input gradient of y = x.
void depthwise_conv2d(const Planes& x, const Planes& kernel, const float* bias, const Planes& y,
                      bool turned, const ConvCall& call);

// kernel = the weight gradient. It must hold zeros: taps that lie outside of the image everywhere
// are left alone.
void depthwise_conv2d_grad_weight(const Planes& grad, const Planes& x, const Planes& kernel,
                                  const ConvCall& call);

}  // namespace cba
