// The kernels of one instruction set; include after a vec_<isa>.h.
#pragma once

#include "cpu/dwconv_direct_body.h"
#include "cpu/dwconv_fft_body.h"
#include "cpu/dwconv_strip_body.h"

namespace cba {
namespace {

constexpr ConvKernels conv_kernels() {
  return {kLanes, fft_scratch, fft, strip_scratch, strip, direct_scratch, direct};
}

}  // namespace
}  // namespace cba
