// The element types of tensors; no C++ library header, see csrc/README.md.
#pragma once

namespace cba {

// The first kFloatTypes of them index tables of kernels.
enum class DType : int { kFloat32, kFloat64, kFloat16, kBfloat16, kUint8 };
constexpr int kFloatTypes = 4;

}  // namespace cba
