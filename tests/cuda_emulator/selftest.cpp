// Kernels that test the emulator itself; some are wrong on purpose.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

using Address = std::uintptr_t;

// Reverses its input through shared memory.
__global__ void reverse_kernel(const float* in, float* out, bool with_barrier) {
  auto* shared = reinterpret_cast<float*>(cba::dynamic_shared());
  shared[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// Runs one instruction on the given registers: [32, 4], [32, 2] and [32, 4].
template <class Half>
__global__ void registers_kernel(const std::uint32_t* a, const std::uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const std::uint32_t left[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  float sum[4] = {};
  cba::mma_m16n8k16(sum, left, b[2 * lane], b[2 * lane + 1], Half{});
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

// Loads the [32, 4] registers of the four 8x8 matrices in `rows`, which has [32, 8] 16-bit
// elements.
__global__ void matrices_kernel(const uint4* rows, std::uint32_t* registers, bool transposed) {
  auto* shared = reinterpret_cast<uint4*>(cba::dynamic_shared());
  const int lane = static_cast<int>(threadIdx.x);
  shared[lane] = rows[lane];
  __syncwarp();
  std::uint32_t found[4];
  if (transposed) {
    cba::ldmatrix_x4_trans(found, shared + lane);
  } else {
    cba::ldmatrix_x4(found, shared + lane);
  }
  for (int i = 0; i < 4; ++i) registers[4 * lane + i] = found[i];
}

__global__ void unfinished_copy_kernel(const uint4* in, uint4* out) {
  auto* shared = reinterpret_cast<uint4*>(cba::dynamic_shared());
  cba::cp_async<16>(shared + threadIdx.x, in + threadIdx.x);
  cba::cp_async_commit();
  cba::cp_async_wait<1>();  // one group too few
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void divergent_kernel(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  } else {
    out[threadIdx.x] = static_cast<int>(__ballot_sync(~0u, 1));
  }
}

__global__ void lonely_kernel(int* out) {
  if (threadIdx.x < 16) __syncwarp();
  __syncthreads();
  out[threadIdx.x] = 1;
}

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

void reverse(Address in, Address out, unsigned n, bool with_barrier) {
  check(cba::launch({1, n, 4 * n, nullptr}, reverse_kernel, reinterpret_cast<const float*>(in),
                    reinterpret_cast<float*>(out), with_barrier));
}

void registers(Address a, Address b, Address d, bool bfloat16) {
  check(cba::launch({1, 32, 0, nullptr},
                    bfloat16 ? registers_kernel<__nv_bfloat16> : registers_kernel<__half>,
                    reinterpret_cast<const std::uint32_t*>(a),
                    reinterpret_cast<const std::uint32_t*>(b), reinterpret_cast<float*>(d)));
}

void matrices(Address rows, Address out, bool transposed) {
  check(cba::launch({1, 32, 512, nullptr}, matrices_kernel, reinterpret_cast<const uint4*>(rows),
                    reinterpret_cast<std::uint32_t*>(out), transposed));
}

void wrong(const std::string& name, Address in, Address out) {
  if (name == "unfinished copy") {
    check(cba::launch({1, 32, 512, nullptr}, unfinished_copy_kernel,
                      reinterpret_cast<const uint4*>(in), reinterpret_cast<uint4*>(out)));
  } else {
    check(cba::launch({1, 32, 0, nullptr}, name == "divergent" ? divergent_kernel : lonely_kernel,
                      reinterpret_cast<int*>(out)));
  }
}

}  // namespace

void bind_selftest(pybind11::module_& m) {
  m.def("selftest_reverse", reverse);
  m.def("selftest_registers", registers);
  m.def("selftest_matrices", matrices);
  m.def("selftest_wrong", wrong);
}
