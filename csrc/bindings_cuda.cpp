// The CUDA kernels for Python: integers become pointers, the GIL is released, a failed check
// becomes a ValueError and a CUDA error code a RuntimeError.
#include "bindings_cuda.h"

#include <dlfcn.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dtype.h"
#include "cuda/dwconv_fma.h"
#include "cuda/dwconv_hankel.h"
#include "cuda/dwconv_strip.h"
#include "cuda/erf_accumulate.h"
#include "cuda/erf_size.h"
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

// The version of CUDA that the driver has, as 1000 * major + 10 * minor; 0 for no driver. Asked of
// the driver itself, because the runtime's function also starts it: from then on child processes
// made by fork() cannot use CUDA, and CUDA_VISIBLE_DEVICES is no longer read. This is called by
// programs that never use a GPU.
int driver_version() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);  // as the runtime does; it stays
  if (driver == nullptr) return 0;
  const auto version_of = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  return version_of != nullptr && version_of(&version) == 0 ? version : 0;
}

// What the driver has, and what this build has.
py::tuple cuda_versions() {
  int runtime = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  return py::make_tuple(driver_version(), runtime);
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

// (address, dtype, (N, C, H, W), strides), strides in elements.
using GradArgument = std::tuple<Address, std::string, std::array<Int, 4>, std::array<Int, 4>>;

cba::CudaGradients gradients_at(const GradArgument& argument) {
  const auto& [address, dtype, shape, strides] = argument;
  require(*std::min_element(shape.begin(), shape.end()) >= 0, "grad: negative size");
  // Pixels are numbered in 32 bits, and the error bound of ERF sizes counts on it.
  require(shape[2] == 0 || shape[3] < (Int{1} << 31) / shape[2], "grad: 2^31 pixels or more");
  const Int empty = std::count(shape.begin(), shape.end(), 0);
  return {pointer<const void>(address, empty ? 0 : 1, "grad"),
          cba::parse_float_type(dtype),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          strides[0],
          strides[1],
          strides[2],
          strides[3]};
}

std::size_t erf_size_cuda_scratch(const GradArgument& grad) {
  return cba::erf_size_cuda_scratch(gradients_at(grad));
}

void erf_size_cuda(const GradArgument& grad, const std::vector<double>& shares, Address sizes,
                   Address scratch, int device, Address stream) {
  const cba::CudaGradients g = gradients_at(grad);
  require(g.channels > 0, "erf_size_cuda: no channels");
  require(std::all_of(shares.begin(), shares.end(), [](double p) { return p >= 0 && p <= 1; }),
          "erf_size_cuda: shares must lie in [0, 1]");
  const int columns = static_cast<int>(shares.size());
  const cba::CudaErfSizeParams params = {
      g,
      shares.data(),
      columns,
      pointer<Int>(sizes, g.images * columns, "erf_size_cuda: sizes"),
      pointer<void>(scratch, g.images * columns, "erf_size_cuda: scratch"),
      device,
      stream_at(stream)};
  launched("erf_size_cuda", [&] { return cba::erf_size_cuda(params); });
}

void erf_accumulate_cuda(const GradArgument& grad, const std::string& mode, Address map,
                         const std::array<Int, 2>& map_strides, int device, Address stream) {
  const cba::CudaGradients g = gradients_at(grad);
  const cba::CudaErfMap to = {pointer<double>(map, g.height * g.width, "erf_accumulate_cuda: map"),
                              map_strides[0], map_strides[1]};
  const cba::CudaErfAccumulateParams params = {g, cba::parse_cuda_erf_mode(mode), to, device,
                                               stream_at(stream)};
  launched("erf_accumulate_cuda", [&] { return cba::erf_accumulate_cuda(params); });
}

// The strides of images (N,C,H,W) but the last, which is 1.
cba::CudaImages images_at(Address data, const std::array<Int, 3>& strides, Int count,
                          const char* name) {
  return {pointer<void>(data, count, name), strides[0], strides[1], strides[2]};
}

// N, C, H, W, KH, KW, none of them negative; returns how many pixels there are.
Int checked_size(const std::array<Int, 6>& size) {
  for (const Int side : size) require(side >= 0, "dwconv: negative size");
  require(size[4] > 0 && size[5] > 0 && size[4] < 1024 && size[5] < 1024,
          "dwconv: kernel sides must be 1 to 1023");
  return size[0] * size[1] * size[2] * size[3];
}

void dwconv_hankel_cuda(Address x, const std::array<Int, 3>& x_strides, Address kernel,
                        Address bias, Address y, const std::array<Int, 3>& y_strides,
                        const std::string& dtype, const std::array<Int, 6>& size, bool turned,
                        const std::array<int, 4>& tile, int device, Address stream) {
  const Int pixels = checked_size(size), taps = size[1] * size[4] * size[5];
  const cba::CudaConvParams params = {
      images_at(x, x_strides, pixels, "dwconv_hankel_cuda: x"),
      images_at(y, y_strides, pixels, "dwconv_hankel_cuda: y"),
      pointer<const void>(kernel, taps, "dwconv_hankel_cuda: kernel"),
      reinterpret_cast<const void*>(bias),
      cba::parse_float_type(dtype),
      size[0],
      size[1],
      size[2],
      size[3],
      static_cast<int>(size[4]),
      static_cast<int>(size[5]),
      turned,
      device,
      stream_at(stream)};
  const cba::HankelTile chosen = {tile[0], tile[1], tile[2], tile[3]};
  require(cba::hankel_can_run(params, chosen), "dwconv_hankel_cuda: no kernel for this");
  launched("dwconv_hankel_cuda", [&] { return cba::dwconv_hankel_cuda(params, chosen); });
}

void dwconv_hankel_weight_cuda(Address grad, const std::array<Int, 3>& grad_strides, Address x,
                               const std::array<Int, 3>& x_strides, Address kernel,
                               Address partials, int splits, const std::string& dtype,
                               const std::array<Int, 6>& size, const std::array<int, 5>& tile,
                               int device, Address stream) {
  const Int pixels = checked_size(size), taps = size[1] * size[4] * size[5];
  const cba::CudaConvWeightParams params = {
      images_at(grad, grad_strides, pixels, "dwconv_hankel_weight_cuda: grad"),
      images_at(x, x_strides, pixels, "dwconv_hankel_weight_cuda: x"),
      pointer<void>(kernel, taps, "dwconv_hankel_weight_cuda: kernel"),
      pointer<float>(partials, splits * taps, "dwconv_hankel_weight_cuda: partials"),
      splits,
      cba::parse_float_type(dtype),
      size[0],
      size[1],
      size[2],
      size[3],
      static_cast<int>(size[4]),
      static_cast<int>(size[5]),
      device,
      stream_at(stream)};
  const cba::HankelWeightTile chosen = {tile[0], tile[1], tile[2], tile[3], tile[4]};
  require(cba::hankel_can_run(params, chosen), "dwconv_hankel_weight_cuda: no kernel for this");
  launched("dwconv_hankel_weight_cuda",
           [&] { return cba::dwconv_hankel_weight_cuda(params, chosen); });
}

void dwconv_strip_cuda(Address x, const std::array<Int, 3>& x_strides, Address kernel, Address bias,
                       Address y, const std::array<Int, 3>& y_strides, const std::string& dtype,
                       const std::array<Int, 6>& size, bool turned, const std::array<int, 5>& tile,
                       int device, Address stream) {
  const Int pixels = checked_size(size), taps = size[1] * size[4] * size[5];
  const cba::CudaConvParams params = {
      images_at(x, x_strides, pixels, "dwconv_strip_cuda: x"),
      images_at(y, y_strides, pixels, "dwconv_strip_cuda: y"),
      pointer<const void>(kernel, taps, "dwconv_strip_cuda: kernel"),
      reinterpret_cast<const void*>(bias),
      cba::parse_float_type(dtype),
      size[0],
      size[1],
      size[2],
      size[3],
      static_cast<int>(size[4]),
      static_cast<int>(size[5]),
      turned,
      device,
      stream_at(stream)};
  const cba::StripTile chosen = {tile[0], tile[1], tile[2], tile[3], tile[4]};
  require(cba::strip_can_run(params, chosen), "dwconv_strip_cuda: no kernel for this");
  launched("dwconv_strip_cuda", [&] { return cba::dwconv_strip_cuda(params, chosen); });
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
  m.def("cuda_versions", cuda_versions);
  m.def("quantize_cuda", quantize_cuda, py::arg("source"), py::arg("dtype"), py::arg("bytes"),
        py::arg("n"), py::arg("first_bad"), py::arg("device"), py::arg("stream"));
  m.def("erf_size_cuda_scratch", erf_size_cuda_scratch, py::arg("grad"));
  m.def("erf_size_cuda", erf_size_cuda, py::arg("grad"), py::arg("shares"), py::arg("sizes"),
        py::arg("scratch"), py::arg("device"), py::arg("stream"));
  m.def("erf_accumulate_cuda", erf_accumulate_cuda, py::arg("grad"), py::arg("mode"),
        py::arg("map"), py::arg("map_strides"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_hankel_cuda", dwconv_hankel_cuda, py::arg("x"), py::arg("x_strides"),
        py::arg("kernel"), py::arg("bias"), py::arg("y"), py::arg("y_strides"), py::arg("dtype"),
        py::arg("size"), py::arg("turned"), py::arg("tile"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_hankel_weight_cuda", dwconv_hankel_weight_cuda, py::arg("grad"),
        py::arg("grad_strides"), py::arg("x"), py::arg("x_strides"), py::arg("kernel"),
        py::arg("partials"), py::arg("splits"), py::arg("dtype"), py::arg("size"), py::arg("tile"),
        py::arg("device"), py::arg("stream"));
  m.def("dwconv_strip_cuda", dwconv_strip_cuda, py::arg("x"), py::arg("x_strides"),
        py::arg("kernel"), py::arg("bias"), py::arg("y"), py::arg("y_strides"), py::arg("dtype"),
        py::arg("size"), py::arg("turned"), py::arg("tile"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_fma_cuda", dwconv_fma_cuda, py::arg("x"), py::arg("kernel"), py::arg("bias"),
        py::arg("y"), py::arg("sizes"), py::arg("turned"), py::arg("device"), py::arg("stream"));
  m.def("dwconv_fma_weight_cuda", dwconv_fma_weight_cuda, py::arg("grad"), py::arg("x"),
        py::arg("kernel"), py::arg("partials"), py::arg("splits"), py::arg("sizes"),
        py::arg("device"), py::arg("stream"));
}
