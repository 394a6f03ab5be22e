// The CUDA kernels for Python: integers become pointers, the GIL is released, a failed check
// becomes a ValueError and a CUDA error code a RuntimeError.
#include "bindings_cuda.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "common/dtype.h"
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

// The versions of CUDA that the driver and this build have, as 1000 * major + 10 * minor; 0 for no
// driver.
py::tuple cuda_versions() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  return py::make_tuple(driver, runtime);
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

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_versions", cuda_versions);
  m.def("quantize_cuda", quantize_cuda, py::arg("source"), py::arg("dtype"), py::arg("bytes"),
        py::arg("n"), py::arg("first_bad"), py::arg("device"), py::arg("stream"));
}
