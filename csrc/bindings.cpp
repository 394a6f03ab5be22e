// The Python module. Only this file and bindings_cuda.cpp know Python: they turn integers into
// pointers and release the GIL, and a failed check (std::invalid_argument) becomes a ValueError.
#include "bindings.h"

#include <memory>
#include <stdexcept>

#include "build_config.h"
#include "common/parallel_for.h"
#include "cpu/box_sweep.h"
#include "cpu/dwconv.h"
#include "cpu/erf_accumulate.h"
#include "cpu/erf_size.h"
#include "cpu/isa.h"
#include "cpu/quantize.h"

namespace py = pybind11;

namespace {

using cba::Address;
using cba::GradArgument;
using cba::Int;
using cba::pointer;
using cba::require;

std::vector<std::string> names(const std::vector<cba::Isa>& isas) {
  std::vector<std::string> result;
  for (cba::Isa isa : isas) result.push_back(cba::isa_name(isa));
  return result;
}

py::dict build_info() {
  const cba::IsaChoice& choice = cba::isa_choice();
  py::dict info;
  info["compiler"] = CBA_CXX_COMPILER;
  info["isas_compiled"] = names(cba::compiled_isas());
  info["isas_supported"] = names(cba::supported_isas());
  info["isa"] = choice.error.empty() ? py::object(py::str(cba::isa_name(choice.isa))) : py::none();
  info["isa_reason"] = choice.error.empty() ? choice.reason : choice.error;
  info["cuda_compiler"] = CBA_CUDA ? py::object(py::str(CBA_CUDA_COMPILER)) : py::none();
  info["cuda_archs"] = CBA_CUDA ? py::object(py::str(CBA_CUDA_ARCHS)) : py::none();
  info["cuda_reason"] = CBA_CUDA ? py::none() : py::object(py::str(CBA_CUDA_REASON));
  return info;
}

Int quantize(Address source, const std::string& dtype, Address bytes, Int n, const std::string& isa,
             int num_threads) {
  const auto* from = pointer<const void>(source, n, "quantize: source");
  auto* to = pointer<std::uint8_t>(bytes, n, "quantize: bytes");
  const cba::DType type = cba::parse_dtype(dtype, {"float32", "float64"});
  const cba::Isa set = cba::resolve_isa(isa);
  const py::gil_scoped_release release;
  return cba::quantize(from, type, to, n, set, num_threads);
}

cba::Maps maps_at(Address maps, Int num, Int height, Int width, const std::string& dtype) {
  return {pointer<const void>(maps, num * height * width, "maps"),
          cba::parse_dtype(dtype, {"uint8", "float32", "float64"}), num, height, width};
}

cba::SweepOptions sweep_options(const std::string& isa, const std::string& method,
                                int num_threads) {
  require(method == "auto" || method == "segments" || method == "pixels",
          "method must be auto, segments or pixels, got " + method);
  return {cba::resolve_isa(isa),
          method == "auto"       ? cba::Method::kAuto
          : method == "segments" ? cba::Method::kSegments
                                 : cba::Method::kPixels,
          num_threads};
}

cba::Thresholds thresholds_at(Address thresholds, Int num) {
  const auto* values = pointer<const double>(thresholds, num, "thresholds");
  // Other values would lead to levels outside the tables.
  const double* bad =
      std::find_if(values, values + num, [](double v) { return !(v >= 0 && v < 1); });
  if (bad != values + num) {  // `require` would make its text for every threshold
    throw std::invalid_argument("thresholds must lie in [0, 1), got " + std::to_string(*bad));
  }
  return {values, num};
}

Int largest_boxes(Address maps, Int num, Int height, Int width, Address thresholds,
                  Int num_thresholds, Address boxes, int num_threads, const std::string& dtype,
                  const std::string& isa, const std::string& method) {
  const cba::Maps m = maps_at(maps, num, height, width, dtype);
  const cba::Thresholds t = thresholds_at(thresholds, num_thresholds);
  auto* out = pointer<std::int32_t>(boxes, num * num_thresholds * 4, "boxes");
  const cba::SweepOptions options = sweep_options(isa, method, num_threads);
  const py::gil_scoped_release release;
  return cba::largest_boxes(m, t, out, options);
}

std::unique_ptr<cba::AllBoxes> all_boxes(Address maps, Int num, Int height, Int width,
                                         Address thresholds, Int num_thresholds, int num_threads,
                                         const std::string& dtype, const std::string& isa,
                                         const std::string& method) {
  const cba::Maps m = maps_at(maps, num, height, width, dtype);
  const cba::Thresholds t = thresholds_at(thresholds, num_thresholds);
  const cba::SweepOptions options = sweep_options(isa, method, num_threads);
  const py::gil_scoped_release release;
  return std::make_unique<cba::AllBoxes>(m, t, options);
}

void write_all_boxes(const cba::AllBoxes& self, Address boxes, Address offsets, int num_threads) {
  auto* to = pointer<std::int32_t>(boxes, self.num_boxes() * 4, "boxes");
  auto* starts = pointer<Int>(offsets, self.num_offsets(), "offsets");
  const py::gil_scoped_release release;
  self.write(to, starts, num_threads);
}

Int best_iou(Address maps, Int num, Int height, Int width, Address thresholds, Int num_thresholds,
             Address truth_boxes, Address truth_offsets, bool all_contours, Address iou,
             int num_threads, const std::string& dtype, const std::string& isa,
             const std::string& method) {
  const cba::Maps m = maps_at(maps, num, height, width, dtype);
  const cba::Thresholds t = thresholds_at(thresholds, num_thresholds);
  const auto* offsets = pointer<const Int>(truth_offsets, num + 1, "truth_offsets");
  const cba::GroundTruth truth = {pointer<const Int>(truth_boxes, offsets[num] * 4, "truth_boxes"),
                                  offsets};
  auto* out = pointer<double>(iou, num * num_thresholds, "iou");
  const cba::SweepOptions options = sweep_options(isa, method, num_threads);
  const py::gil_scoped_release release;
  return cba::best_iou(m, t, truth, all_contours, out, options);
}

// (height, width, (stride_n, stride_c, stride_h, stride_w)), strides in elements.
using PlanesArgument = std::tuple<Int, Int, std::array<Int, 4>>;

// Kernels use 32-bit offsets within a plane of 16 channels.
constexpr Int kMostPixels = Int{1} << 20;

cba::Planes planes_of(const PlanesArgument& argument, cba::DType type, const char* name) {
  const auto& [height, width, strides] = argument;
  require(height > 0 && width > 0, std::string(name) + ": empty plane");
  require(height <= kMostPixels && width <= kMostPixels / height,
          std::string(name) + ": more than 2^20 pixels in a plane");
  require(strides[1] == 1 || strides[3] == 1,
          std::string(name) + ": neither channels nor columns are contiguous");
  return {nullptr, type, height, width, strides[0], strides[1], strides[2], strides[3]};
}

// One direction of the depthwise convolution for tensors of one layout. All but the addresses is
// checked once, so that a call takes less than a microsecond besides its kernel.
class DepthwiseConv {
 public:
  // `first` is x or the gradient of y; `second` is the kernel or, for "grad_weight", x.
  DepthwiseConv(const std::string& direction, const PlanesArgument& first,
                const PlanesArgument& second, const PlanesArgument& out, const std::string& dtype,
                Int images, Int channels, const std::string& algorithm, const std::string& isa,
                bool relu)
      : DepthwiseConv(
            direction, first, second, out, relu,
            cba::parse_dtype(dtype, {"float32", "bfloat16", "float16"}),
            {images, channels, cba::parse_conv_algorithm(algorithm), cba::resolve_isa(isa), 1}) {}

  // `bias`: C float32 values or null.
  void run(Address first, Address second, Address bias, Address out, int num_threads) const {
    const cba::Planes a = at(first, first_, "first"), b = at(second, second_, "second");
    const cba::Planes to = at(out, out_, "out");
    cba::ConvCall call = call_;
    call.num_threads = num_threads;
    const py::gil_scoped_release release;
    if (sums_) return cba::depthwise_conv2d_grad_weight(a, b, to, call);
    cba::depthwise_conv2d(a, b, reinterpret_cast<const float*>(bias), to, relu_, turned_, call);
  }

 private:
  DepthwiseConv(const std::string& direction, const PlanesArgument& first,
                const PlanesArgument& second, const PlanesArgument& out, bool relu, cba::DType type,
                const cba::ConvCall& call)
      : sums_(direction == "grad_weight"),
        turned_(direction == "grad_x"),
        relu_(relu),
        first_(planes_of(first, type, "first")),
        second_(planes_of(second, type, "second")),
        out_(planes_of(out, type, "out")),
        call_(call) {
    require(sums_ || turned_ || direction == "forward", "no direction " + direction);
    require(call.images > 0 && call.channels > 0, "depthwise_conv2d: empty batch");
    const cba::Planes &kernel = sums_ ? out_ : second_, &image = sums_ ? second_ : out_;
    require(first_.height == image.height && first_.width == image.width, "images differ in size");
    cba::require_kernel(kernel.height, kernel.width);
  }

  static cba::Planes at(Address address, cba::Planes planes, const char* name) {
    planes.data = pointer<void>(address, 1, name);
    return planes;
  }

  bool sums_, turned_, relu_;
  cba::Planes first_, second_, out_;
  cba::ConvCall call_;
};

Int erf_size(const GradArgument& grad, const std::vector<double>& shares, Address sizes,
             const std::string& isa, int num_threads) {
  const cba::Gradients g = cba::gradients_at(grad);
  cba::require_shares(g, shares);
  auto* to = pointer<Int>(sizes, g.images * static_cast<Int>(shares.size()), "sizes");
  const cba::Isa set = cba::resolve_isa(isa);
  const py::gil_scoped_release release;
  return cba::erf_size(g, shares, to, set, num_threads);
}

void erf_accumulate(const GradArgument& grad, const std::string& mode, Address map,
                    const std::array<Int, 2>& map_strides, const std::string& isa,
                    int num_threads) {
  const cba::Gradients g = cba::gradients_at(grad);
  const cba::ErfMap to = cba::erf_map_at(map, map_strides, g);
  const cba::ErfMode what = cba::parse_erf_mode(mode);
  const cba::Isa set = cba::resolve_isa(isa);
  const py::gil_scoped_release release;
  cba::erf_accumulate(g, what, to, set, num_threads);
}

// `parallel` is the address of GOMP_parallel, or 0 for our own threads.
void use_openmp(Address parallel) {
  cba::use_openmp(reinterpret_cast<cba::OpenMpParallel>(parallel));
}

// Calls a Python function on the threads of a parallel loop, for tests and benchmarks.
void call_parallel_for(Int n, int num_threads, const py::function& f) {
  const py::gil_scoped_release release;
  cba::parallel_for(n, num_threads, [&](Int begin, Int end) {
    const py::gil_scoped_acquire acquire;
    f(begin, end);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of cba_fast; use cba_fast.ops.";
  cba::isa_choice();  // decided here, so that a fork cannot interrupt the decision

  m.def("build_info", build_info);
  m.def("use_openmp", use_openmp, py::arg("parallel"));
  m.def("parallel_for", call_parallel_for, py::arg("n"), py::arg("num_threads"), py::arg("f"));
  m.def("quantize", quantize, py::arg("source"), py::arg("dtype"), py::arg("bytes"), py::arg("n"),
        py::arg("isa"), py::arg("num_threads"));
#if CBA_CUDA
  bind_cuda(m);
#endif
  py::class_<DepthwiseConv>(m, "DepthwiseConv")
      .def(py::init<const std::string&, const PlanesArgument&, const PlanesArgument&,
                    const PlanesArgument&, const std::string&, Int, Int, const std::string&,
                    const std::string&, bool>(),
           py::arg("direction"), py::arg("first"), py::arg("second"), py::arg("out"),
           py::arg("dtype"), py::arg("images"), py::arg("channels"), py::arg("algorithm"),
           py::arg("isa"), py::arg("relu") = false)
      .def("run", &DepthwiseConv::run);  // named arguments would double the time of a call
  m.def("erf_size", erf_size, py::arg("grad"), py::arg("shares"), py::arg("sizes"), py::arg("isa"),
        py::arg("num_threads"));
  m.def("erf_accumulate", erf_accumulate, py::arg("grad"), py::arg("mode"), py::arg("map"),
        py::arg("map_strides"), py::arg("isa"), py::arg("num_threads"));
  m.def("largest_boxes", largest_boxes, py::arg("maps"), py::arg("num"), py::arg("height"),
        py::arg("width"), py::arg("thresholds"), py::arg("num_thresholds"), py::arg("boxes"),
        py::arg("num_threads"), py::arg("dtype") = "uint8", py::arg("isa") = "",
        py::arg("method") = "auto");
  m.def("best_iou", best_iou, py::arg("maps"), py::arg("num"), py::arg("height"), py::arg("width"),
        py::arg("thresholds"), py::arg("num_thresholds"), py::arg("truth_boxes"),
        py::arg("truth_offsets"), py::arg("all_contours"), py::arg("iou"), py::arg("num_threads"),
        py::arg("dtype") = "uint8", py::arg("isa") = "", py::arg("method") = "auto");
  py::class_<cba::AllBoxes>(m, "AllBoxes")
      .def(py::init(&all_boxes), py::arg("maps"), py::arg("num"), py::arg("height"),
           py::arg("width"), py::arg("thresholds"), py::arg("num_thresholds"),
           py::arg("num_threads"), py::arg("dtype") = "uint8", py::arg("isa") = "",
           py::arg("method") = "auto")
      .def_property_readonly("first_bad", &cba::AllBoxes::first_bad)
      .def_property_readonly("num_boxes", &cba::AllBoxes::num_boxes)
      .def("write", write_all_boxes, py::arg("boxes"), py::arg("offsets"), py::arg("num_threads"));
}
