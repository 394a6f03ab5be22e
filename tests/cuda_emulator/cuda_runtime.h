// The part of CUDA's runtime header that csrc/cuda/ uses, for the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Launches
using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
inline const char* cudaGetErrorString(cudaError_t) { return emulator::last_error(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(at, value, bytes), cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  const dim3 &g = config->gridDim, &b = config->blockDim;
  const bool done =
      emulator::run({g.x, g.y, g.z}, {b.x, b.y, b.z}, config->dynamicSmemBytes,
                    reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, values); });
  return done ? cudaSuccess : cudaErrorLaunchFailure;
}

// Vectors
#define CBA_EMULATED_VECTOR(name, type) \
  struct alignas(16) name {             \
    type x, y, z, w;                    \
  };                                    \
  CBA_INSTRUCTION name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
CBA_EMULATED_VECTOR(float4, float)
CBA_EMULATED_VECTOR(uint4, unsigned)
#undef CBA_EMULATED_VECTOR

// Barriers and warps
CBA_INSTRUCTION void __syncthreads() { emulator::sync_block(false); }
CBA_INSTRUCTION int __syncthreads_or(int vote) { return emulator::sync_block(vote != 0) > 0; }
CBA_INSTRUCTION void __syncwarp(unsigned mask = ~0u) { emulator::sync_warp(mask); }
CBA_INSTRUCTION void __threadfence() { emulator::fence(); }

namespace emulator {

// Returns the value of lane `from`, or this lane's value if the segment has no such lane.
template <class T>
T shuffled(const char* what, unsigned mask, T value, int from, int width) {
  const Exchange all(what, mask, &value, sizeof value);
  const int first = lane() / width * width;
  if (from < first || from >= first + width) return value;
  if (!all.has(from)) fail(what, "reads a lane that its mask leaves out");
  return all.of<T>(from);
}

template <class T, class F>
T reduced(const char* what, unsigned mask, T value, F join) {
  const Exchange all(what, mask, &value, sizeof value);
  bool first = true;
  T result = value;
  for (int l = 0; l < 32; ++l) {
    if (!all.has(l)) continue;
    result = first ? all.of<T>(l) : join(result, all.of<T>(l));
    first = false;
  }
  return result;
}

}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return emulator::shuffled("__shfl_xor_sync", mask, value, emulator::lane() ^ bits, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int from = emulator::lane() - static_cast<int>(by);
  return emulator::shuffled("__shfl_up_sync", mask, value, from, width);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int first = emulator::lane() / width * width;
  return emulator::shuffled("__shfl_sync", mask, value, first + from % width, width);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const unsigned bit = vote ? 1u << emulator::lane() : 0;
  return emulator::reduced("__ballot_sync", mask, bit, [](auto a, auto b) { return a | b; });
}

// Atomics
template <class T, class F>
CBA_INSTRUCTION T emulated_atomic(T* at, F change) {
  T before;
  emulator::load_atomic(at, &before, sizeof before);
  const T after = change(before);
  emulator::store_atomic(at, &after, sizeof after);
  return before;
}
template <class T>
CBA_INSTRUCTION T atomicAdd(T* at, T value) {
  return emulated_atomic(at, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
CBA_INSTRUCTION T atomicMax(T* at, T value) {
  return emulated_atomic(at, [&](T old) { return max(old, value); });
}
template <class T>
CBA_INSTRUCTION T atomicMin(T* at, T value) {
  return emulated_atomic(at, [&](T old) { return min(old, value); });
}

// Arithmetic. The emulator is compiled without contraction, so that every operation rounds once.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline unsigned __float2uint_rz(float a) { return static_cast<unsigned>(a); }
inline unsigned __double2uint_rz(double a) { return static_cast<unsigned>(a); }

namespace emulator {
template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace emulator

inline unsigned __float_as_uint(float a) { return emulator::bits_as<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return emulator::bits_as<float>(a); }
inline long long __double_as_longlong(double a) { return emulator::bits_as<long long>(a); }
inline double __longlong_as_double(long long a) { return emulator::bits_as<double>(a); }
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift < 32 ? shift : 32));
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31));
}
