// Element types that kernels take, by the names PyTorch and NumPy give them.
#pragma once

#include <stdexcept>
#include <string>

namespace cba {

enum class DType { kFloat32, kFloat64 };

inline DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  throw std::invalid_argument("dtype must be float32 or float64, got " + name);
}

enum class FloatType { kFloat16, kBfloat16, kFloat32, kFloat64 };

inline FloatType parse_float_type(const std::string& name) {
  if (name == "float16") return FloatType::kFloat16;
  if (name == "bfloat16") return FloatType::kBfloat16;
  if (name == "float32") return FloatType::kFloat32;
  if (name == "float64") return FloatType::kFloat64;
  throw std::invalid_argument("dtype must be float16, bfloat16, float32 or float64, got " + name);
}

}  // namespace cba
