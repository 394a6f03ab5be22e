// The element types of tensors. No C++ library header may be included here, see csrc/README.md.
#pragma once

namespace cba {

// The first kFloatTypes types are also indices into tables of kernels.
enum class DType : int { kFloat32, kFloat64, kFloat16, kBfloat16, kUint8 };
constexpr int kFloatTypes = 4;

}  // namespace cba
