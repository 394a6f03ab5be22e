// The CUDA half of the Python module. A failed check becomes a ValueError, a CUDA error code a
// RuntimeError.
#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>
#include <utility>

#include "bindings.h"
#include "cuda/box_sweep.h"
#include "cuda/dwconv_fma.h"
#include "cuda/dwconv_hankel.h"
#include "cuda/dwconv_strip.h"
#include "cuda/erf_accumulate.h"
#include "cuda/erf_size.h"
#include "cuda/quantize.h"

namespace py = pybind11;

namespace {

using cba::Address;
using cba::GradArgument;
using cba::gradients_at;
using cba::Int;
using cba::pointer;
using cba::require;

cudaStream_t stream_at(Address stream) {
  return reinterpret_cast<cudaStream_t>(stream);  // null is the default stream
}

// Calls `kernels()`, which launches kernels, without the GIL, and throws if it returns an error.
template <class F>
void launched(const std::string& name, const F& kernels) {
  cudaError_t status;
  {
    const py::gil_scoped_release release;
    status = kernels();
  }
  if (status != cudaSuccess) {
    throw std::runtime_error(name + ": " + cudaGetErrorString(status));
  }
}

// The CUDA version of the driver as 1000 * major + 10 * minor, or 0 without a driver. The runtime's
// function for it would also start the driver: from then on child processes made by fork() cannot
// use CUDA, and CUDA_VISIBLE_DEVICES is no longer read. But this is also called by programs that
// never use a GPU, so the driver is asked directly.
int driver_version() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);  // as the runtime does; it stays loaded
  if (driver == nullptr) return 0;
  const auto version_of = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  return version_of != nullptr && version_of(&version) == 0 ? version : 0;
}

// The CUDA versions of the driver and of the runtime that this build contains.
py::tuple cuda_versions() {
  int runtime = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  return py::make_tuple(driver_version(), runtime);
}

void quantize_cuda(Address source, const std::string& dtype, Address bytes, Int n,
                   Address first_bad, int device, Address stream) {
  const cba::CudaQuantizeParams params = {
      pointer<const void>(source, n, "quantize_cuda: source"),
      cba::parse_dtype(dtype, {"float32", "float64"}),
      pointer<std::uint8_t>(bytes, n, "quantize_cuda: bytes"),
      n,
      pointer<unsigned long long>(first_bad, 1, "quantize_cuda: first_bad"),
      device,
      stream_at(stream)};
  launched("quantize_cuda", [&] { return cba::quantize_cuda(params); });
}

std::size_t erf_size_cuda_scratch(const GradArgument& grad) {
  return cba::erf_size_cuda_scratch(gradients_at(grad));
}

void erf_size_cuda(const GradArgument& grad, const std::vector<double>& shares, Address sizes,
                   Address scratch, int device, Address stream) {
  const cba::Gradients g = gradients_at(grad);
  cba::require_shares(g, shares);
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
  const cba::Gradients g = gradients_at(grad);
  const cba::CudaErfAccumulateParams params = {g, cba::parse_erf_mode(mode),
                                               cba::erf_map_at(map, map_strides, g), device,
                                               stream_at(stream)};
  launched("erf_accumulate_cuda", [&] { return cba::erf_accumulate_cuda(params); });
}

// Results and true boxes that are not wanted have null addresses.
void box_sweep_cuda(Address maps, const std::array<Int, 3>& shape, bool all_contours, Address pairs,
                    Int num_pairs, int nodes, Address done, Address boxes, Address starts,
                    Address counts, Address iou, Address truth, Address offsets, int device,
                    Address stream) {
  const auto& [num, height, width] = shape;
  require(num >= 0 && height > 0 && width > 0 && num <= (Int{1} << 31) / 256,
          "box_sweep_cuda: a shape of " + std::to_string(num) + " maps");
  require(std::max(height, width) < 1 << 15 && nodes >= 1 &&
              nodes <= cba::box_sweep_cuda_nodes(height, width),
          "box_sweep_cuda: no memory for this");
  require(iou == 0 || (truth != 0 && offsets != 0) || num == 0, "box_sweep_cuda: no true boxes");
  require(!all_contours || boxes == 0 || starts != 0, "box_sweep_cuda: no starts");
  const cba::CudaSweepParams params = {
      pointer<const std::uint8_t>(maps, num, "box_sweep_cuda: maps"),
      num,
      height,
      width,
      all_contours,
      pointer<const Int>(pairs, num_pairs, "box_sweep_cuda: pairs"),
      num_pairs,
      nodes,
      pointer<std::uint8_t>(done, num, "box_sweep_cuda: done"),
      reinterpret_cast<std::int32_t*>(boxes),
      reinterpret_cast<const Int*>(starts),
      reinterpret_cast<std::int32_t*>(counts),
      reinterpret_cast<double*>(iou),
      reinterpret_cast<const Int*>(truth),
      reinterpret_cast<const Int*>(offsets),
      device,
      stream_at(stream)};
  launched("box_sweep_cuda", [&] { return cba::box_sweep_cuda(params); });
}

// (address, strides of images, channels and rows) of a tensor (N,C,H,W) with contiguous columns;
// strides in elements.
using ImagesArgument = std::tuple<Address, std::array<Int, 3>>;
using SizesArgument = std::array<Int, 6>;  // N, C, H, W, KH, KW

cba::CudaImages images_at(const ImagesArgument& argument, Int count, const std::string& name) {
  const auto& [address, strides] = argument;
  return {pointer<void>(address, count, name), strides[0], strides[1], strides[2]};
}

// Checks the sizes of a convolution; returns the number of elements of an image tensor.
Int checked_pixels(const SizesArgument& sizes, const std::string& name) {
  const auto& [n, c, h, w, kh, kw] = sizes;
  require(n >= 0 && c >= 0 && h > 0 && w > 0, name + ": empty plane");
  require(std::max({n, h, w}) <= 1 << 30, name + ": a size of more than 2^30");
  cba::require_kernel(kh, kw);
  return n * c * h * w;
}

// Puts the numbers of a tile into the struct that a kernel takes.
template <class Tile, std::size_t kNumbers, std::size_t... kIndex>
Tile tile_of([[maybe_unused]] const std::array<int, kNumbers>& numbers,
             std::index_sequence<kIndex...>) {
  return {numbers[kIndex]...};
}

// Binds a convolution (forward and input gradient) whose tiles have `kNumbers` numbers.
template <std::size_t kNumbers, class Tile>
void def_conv(py::module_& m, const std::string& name,
              bool (*can_run)(const cba::CudaConvParams&, const Tile&),
              cudaError_t (*run)(const cba::CudaConvParams&, const Tile&)) {
  const auto call = [=](const ImagesArgument& x, Address kernel, Address bias,
                        const ImagesArgument& y, const std::string& dtype,
                        const SizesArgument& sizes, bool turned, bool relu,
                        const std::array<int, kNumbers>& tile, int device, Address stream) {
    const auto& [n, c, h, w, kh, kw] = sizes;
    const Int pixels = checked_pixels(sizes, name);
    const cba::CudaConvParams params = {images_at(x, pixels, name + ": x"),
                                        images_at(y, pixels, name + ": y"),
                                        pointer<const void>(kernel, c, name + ": kernel"),
                                        reinterpret_cast<const void*>(bias),  // null: none
                                        cba::parse_dtype(dtype, {"float32", "float16", "bfloat16"}),
                                        n,
                                        c,
                                        h,
                                        w,
                                        static_cast<int>(kh),
                                        static_cast<int>(kw),
                                        turned,
                                        relu,
                                        device,
                                        stream_at(stream)};
    const auto chosen = tile_of<Tile>(tile, std::make_index_sequence<kNumbers>{});
    require(can_run(params, chosen), name + ": no kernel for this");
    launched(name, [&] { return run(params, chosen); });
  };
  m.def(name.c_str(), call, py::arg("x"), py::arg("kernel"), py::arg("bias"), py::arg("y"),
        py::arg("dtype"), py::arg("sizes"), py::arg("turned"), py::arg("relu"), py::arg("tile"),
        py::arg("device"), py::arg("stream"));
}

// Binds a weight gradient whose tiles have `kNumbers` numbers.
template <std::size_t kNumbers, class Tile>
void def_conv_weight(py::module_& m, const std::string& name,
                     bool (*can_run)(const cba::CudaConvWeightParams&, const Tile&),
                     cudaError_t (*run)(const cba::CudaConvWeightParams&, const Tile&)) {
  const auto call = [=](const ImagesArgument& grad, const ImagesArgument& x, Address kernel,
                        Address partials, int splits, const std::string& dtype,
                        const SizesArgument& sizes, const std::array<int, kNumbers>& tile,
                        int device, Address stream) {
    const auto& [n, c, h, w, kh, kw] = sizes;
    const Int pixels = checked_pixels(sizes, name);
    require(splits >= 1 && splits <= 65535, name + ": 1 to 65535 splits");
    const cba::CudaConvWeightParams params = {
        images_at(grad, pixels, name + ": grad"),
        images_at(x, pixels, name + ": x"),
        pointer<void>(kernel, c, name + ": kernel"),
        pointer<float>(partials, splits > 1 ? c : 0, name + ": partials"),
        splits,
        cba::parse_dtype(dtype, {"float32", "float16", "bfloat16"}),
        n,
        c,
        h,
        w,
        static_cast<int>(kh),
        static_cast<int>(kw),
        device,
        stream_at(stream)};
    const auto chosen = tile_of<Tile>(tile, std::make_index_sequence<kNumbers>{});
    require(can_run(params, chosen), name + ": no kernel for this");
    launched(name, [&] { return run(params, chosen); });
  };
  m.def(name.c_str(), call, py::arg("grad"), py::arg("x"), py::arg("kernel"), py::arg("partials"),
        py::arg("splits"), py::arg("dtype"), py::arg("sizes"), py::arg("tile"), py::arg("device"),
        py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_versions", cuda_versions);
  m.def("quantize_cuda", quantize_cuda, py::arg("source"), py::arg("dtype"), py::arg("bytes"),
        py::arg("n"), py::arg("first_bad"), py::arg("device"), py::arg("stream"));
  m.def("box_sweep_cuda_nodes", cba::box_sweep_cuda_nodes, py::arg("height"), py::arg("width"));
  m.def("box_sweep_cuda", box_sweep_cuda, py::arg("maps"), py::arg("shape"),
        py::arg("all_contours"), py::arg("pairs"), py::arg("num_pairs"), py::arg("nodes"),
        py::arg("done"), py::arg("boxes"), py::arg("starts"), py::arg("counts"), py::arg("iou"),
        py::arg("truth"), py::arg("offsets"), py::arg("device"), py::arg("stream"));
  m.def("erf_size_cuda_scratch", erf_size_cuda_scratch, py::arg("grad"));
  m.def("erf_size_cuda", erf_size_cuda, py::arg("grad"), py::arg("shares"), py::arg("sizes"),
        py::arg("scratch"), py::arg("device"), py::arg("stream"));
  m.def("erf_accumulate_cuda", erf_accumulate_cuda, py::arg("grad"), py::arg("mode"),
        py::arg("map"), py::arg("map_strides"), py::arg("device"), py::arg("stream"));
  def_conv<0>(m, "dwconv_fma_cuda", cba::fma_can_run, cba::dwconv_fma_cuda);
  def_conv_weight<0>(m, "dwconv_fma_weight_cuda", cba::fma_can_run, cba::dwconv_fma_weight_cuda);
  def_conv<4>(m, "dwconv_hankel_cuda", cba::hankel_can_run, cba::dwconv_hankel_cuda);
  def_conv_weight<5>(m, "dwconv_hankel_weight_cuda", cba::hankel_can_run,
                     cba::dwconv_hankel_weight_cuda);
  def_conv<5>(m, "dwconv_strip_cuda", cba::strip_can_run, cba::dwconv_strip_cuda);
}
