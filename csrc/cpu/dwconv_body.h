// The convolution kernels of an instruction set. Include after a vec_<isa>.h.
#pragma once

#include "cpu/dwconv_direct_body.h"
#include "cpu/dwconv_fft_body.h"
#include "cpu/dwconv_strip_body.h"

namespace cba {
namespace {

// `Conv` is FftConv, StripConv or DirectConv; it divides its scratch memory in the same way at each
// call.
template <class Conv, class Task>
constexpr ConvKernel<Task> kernel() {
  return {[](const Task& task) { return Conv(task, Scratch(nullptr)).scratch_used(); },
          [](const Task& task, float* scratch) { Conv(task, Scratch(scratch)).prepare(); },
          [](const Task& task, int64_t begin, int64_t end, float* scratch) {
            Conv conv(task, Scratch(scratch));
            if (task.conv.reduce) {
              conv.run_reduce(begin, end);
            } else {
              conv.run(begin, end);
            }
          }};
}

constexpr ConvKernels conv_kernels() {
  return {kLanes, kernel<FftConv, FftTask>(), kernel<StripConv, StripTask>(),
          kernel<DirectConv, DirectTask>()};
}

}  // namespace
}  // namespace cba
