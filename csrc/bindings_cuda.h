// The CUDA half of the bindings: a file of its own, so that a test can bind emulated kernels.
#pragma once

#include <pybind11/pybind11.h>

// Adds cuda_versions and the functions whose names end in _cuda.
void bind_cuda(pybind11::module_& m);
