// The CUDA kernels for Python: integers become pointers, the GIL is released, a failed check
// becomes a ValueError and a CUDA error code a RuntimeError.
#include "bindings_cuda.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/checks.h"
#include "common/dtype.h"
#include "cuda/dwconv_fma.h"
#include "cuda/quantize.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Int = std::int64_t;
using cba::pointer;
using cba::require;

cudaStream_t stream_at(Address stream) {
  return reinterpret_cast<cudaStream_t>(stream);  // null is the default stream
}

// Runs `kernels()`, which launches, without the GIL.
template <class F>
void launched(const char* name, const F& kernels) {
  cudaError_t status;
  {
    const py::gil_scoped_release release;
    status = kernels();
  }
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
  }
}

void quantize_cuda(Address source, const std::string& dtype, Address bytes, Int n,
                   Address first_bad, int device, Address stream) {
  const cba::CudaQuantizeParams params = {
      pointer<const void>(source, n, "quantize_cuda: source"),
      cba::parse_dtype(dtype),
      pointer<std::uint8_t>(bytes, n, "quantize_cuda: bytes"),
      n,
      pointer<unsigned long long>(first_bad, 1, "quantize_cuda: first_bad"),
      device,
      stream_at(stream)};
  launched("quantize_cuda", [&] { return cba::quantize_cuda(params); });
}

// (address, (stride of images, of channels, of rows)) of a float32 tensor; strides in elements.
using FmaImages = std::tuple<Address, std::array<Int, 3>>;
// (N, C, H, W) and (KH, KW).
using FmaSizes = std::tuple<std::array<Int, 4>, std::array<int, 2>>;

cba::CudaImages fma_images(const FmaImages& argument, const FmaSizes& sizes, const char* name) {
  const auto& [address, strides] = argument;
  const auto& [n, c, h, w] = std::get<0>(sizes);
  require(n >= 0 && c >= 0 && h > 0 && w > 0, std::string(name) + ": empty plane");
  require(std::max({n, h, w}) <= 1 << 30, std::string(name) + ": a size of more than 2^30");
  for (const int side : std::get<1>(sizes)) {
    require(side % 2 == 1 && side >= 1 && side <= 63, "the kernel must be odd, at most 63 x 63");
  }
  return {pointer<void>(address, n * c, name), strides[0], strides[1], strides[2]};
}

void dwconv_fma_cuda(const FmaImages& x, Address kernel, Address bias, const FmaImages& y,
                     const FmaSizes& sizes, bool turned, int device, Address stream) {
  const auto& [n, c, h, w] = std::get<0>(sizes);
  const auto& [kh, kw] = std::get<1>(sizes);
  cba::CudaConvParams params = {};
  params.x = fma_images(x, sizes, "dwconv_fma_cuda: x");
  params.y = fma_images(y, sizes, "dwconv_fma_cuda: y");
  params.kernel = pointer<const void>(kernel, c, "dwconv_fma_cuda: kernel");
  params.bias = reinterpret_cast<const void*>(bias);  // null: none
  params.type = cba::FloatType::kFloat32;
  params.images = n, params.channels = c, params.height = h, params.width = w;
  params.kernel_height = kh, params.kernel_width = kw;
  params.turned = turned;
  params.device = device, params.stream = stream_at(stream);
  launched("dwconv_fma_cuda", [&] { return cba::dwconv_fma_cuda(params); });
}

void dwconv_fma_weight_cuda(const FmaImages& grad, const FmaImages& x, Address kernel,
                            Address partials, int splits, const FmaSizes& sizes, int device,
                            Address stream) {
  const auto& [n, c, h, w] = std::get<0>(sizes);
  const auto& [kh, kw] = std::get<1>(sizes);
  require(splits >= 1 && splits <= 65535, "dwconv_fma_weight_cuda: 1 to 65535 splits");
  cba::CudaConvWeightParams params = {};
  params.grad = fma_images(grad, sizes, "dwconv_fma_weight_cuda: grad");
  params.x = fma_images(x, sizes, "dwconv_fma_weight_cuda: x");
  params.kernel = pointer<void>(kernel, c, "dwconv_fma_weight_cuda: kernel");
  params.partials =
      pointer<float>(partials, splits > 1 ? c : 0, "dwconv_fma_weight_cuda: partials");
  params.splits = splits;
  params.type = cba::FloatType::kFloat32;
  params.images = n, params.channels = c, params.height = h, params.width = w;
  params.kernel_height = kh, params.kernel_width = kw;
  params.device = device, params.stream = stream_at(stream);
  launched("dwconv_fma_weight_cuda", [&] { return cba::dwconv_fma_weight_cuda(params); });
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("quantize_cuda", quantize_cuda, py::arg("source"), py::arg("dtype"), py::arg("bytes"),
        py::arg("n"), py::arg("first_bad"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_fma_cuda", dwconv_fma_cuda, py::arg("x"), py::arg("kernel"), py::arg("bias"),
        py::arg("y"), py::arg("sizes"), py::arg("turned"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_fma_weight_cuda", dwconv_fma_weight_cuda, py::arg("grad"), py::arg("x"),
        py::arg("kernel"), py::arg("partials"), py::arg("splits"), py::arg("sizes"),
        py::arg("device"), py::arg("stream"));
}
