// Depthwise convolution with zero "same" padding and its two gradients, for float32, bfloat16 and
// float16, in float32 arithmetic.
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

// Writes y = conv(x, kernel) + bias, or max(0, y) if `relu`; bias has C float32 values or is null.
// `turned` turns the kernel by 180 degrees, which gives the input gradient if x is the gradient of
// the output. A large y is asked to lie in huge pages, so it should be memory of its own.
void depthwise_conv2d(const Planes& x, const Planes& kernel, const float* bias, const Planes& y,
                      bool relu, bool turned, const ConvCall& call);

// Writes the weight gradient to `kernel`, which must hold zeros: taps that lie outside the image
// for every output are not written.
void depthwise_conv2d_grad_weight(const Planes& grad, const Planes& x, const Planes& kernel,
                                  const ConvCall& call);

}  // namespace cba
