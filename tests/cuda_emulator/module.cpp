// The CUDA half of the compiled core, its kernels emulated.
#include "bindings_cuda.h"
#include "emulator.h"

void bind_selftest(pybind11::module_& m);

PYBIND11_MODULE(cuda_emulated, m) {
  bind_cuda(m);
  bind_selftest(m);
  m.def("set_order", emulator::set_order, pybind11::arg("order"));
}
