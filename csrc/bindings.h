// What the two files of bindings share: arguments that CPUs and GPUs check alike. The CUDA half is
// a separate file, so that a test can bind emulated kernels.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/gradients.h"

// Adds cuda_versions and the functions of the CUDA kernels to the module.
void bind_cuda(pybind11::module_& m);

namespace cba {

using Address = std::uintptr_t;
using Int = std::int64_t;

// (address, dtype, (N, C, H, W), strides), strides in elements.
using GradArgument = std::tuple<Address, std::string, std::array<Int, 4>, std::array<Int, 4>>;

inline Gradients gradients_at(const GradArgument& argument) {
  const auto& [address, dtype, shape, strides] = argument;
  require(*std::min_element(shape.begin(), shape.end()) >= 0, "grad: negative size");
  // GPUs number pixels by 32 bits, and the error bound of ERF sizes holds for fewer than 2^31.
  require(shape[2] == 0 || shape[3] < (Int{1} << 31) / shape[2], "grad: 2^31 pixels or more");
  const Int empty = std::count(shape.begin(), shape.end(), 0);
  return {pointer<const void>(address, empty ? 0 : 1, "grad"),
          parse_dtype(dtype, {"float32", "float64", "float16", "bfloat16"}),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          strides[0],
          strides[1],
          strides[2],
          strides[3]};
}

inline void require_shares(const Gradients& grad, const std::vector<double>& shares) {
  require(grad.channels > 0, "erf_size: no channels");
  require(std::all_of(shares.begin(), shares.end(), [](double p) { return p >= 0 && p <= 1; }),
          "erf_size: shares must lie in [0, 1]");
}

inline ErfMap erf_map_at(Address map, const std::array<Int, 2>& strides, const Gradients& grad) {
  return {pointer<double>(map, grad.height * grad.width, "map"), strides[0], strides[1]};
}

inline ErfMode parse_erf_mode(const std::string& name) {
  if (name == "relu") return ErfMode::kRelu;
  if (name == "abs") return ErfMode::kAbs;
  require(name == "square", "mode must be relu, abs or square, got " + name);
  return ErfMode::kSquare;
}

inline void require_kernel(Int height, Int width) {
  require(
      height % 2 == 1 && width % 2 == 1 && height >= 1 && width >= 1 && height <= 63 && width <= 63,
      "the kernel must be odd and at most 63 x 63");
}

}  // namespace cba
