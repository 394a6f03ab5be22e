// csrc/cuda/ptx.h for a CPU. Copies are done as late as possible, when they are waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cba {

inline unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }

CBA_INSTRUCTION int load_relaxed(const int* shared) {
  int value;
  emulator::load_atomic(shared, &value, sizeof value);
  return value;
}
CBA_INSTRUCTION void store_relaxed(int* shared, int value) {
  emulator::store_atomic(shared, &value, sizeof value);
}

CBA_INSTRUCTION void ldmatrix_x4(std::uint32_t (&matrix)[4], const void* row) {
  emulator::load_matrices(matrix, row, false);
}
CBA_INSTRUCTION void ldmatrix_x4_trans(std::uint32_t (&matrix)[4], const void* row) {
  emulator::load_matrices(matrix, row, true);
}

CBA_INSTRUCTION void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                  std::uint32_t b1, __nv_bfloat16) {
  emulator::multiply(d, a, b0, b1, true);
}
CBA_INSTRUCTION void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                  std::uint32_t b1, __half) {
  emulator::multiply(d, a, b0, b1, false);
}

template <int kSize>
CBA_INSTRUCTION void cp_async(void* shared, const void* global, int bytes = kSize) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
  emulator::require_aligned(shared, kSize, "cp.async");
  emulator::require_aligned(global, kSize, "cp.async");
  emulator::require_shared(shared, kSize, "cp.async");
  emulator::copy_later(shared, global, bytes, kSize);
}
CBA_INSTRUCTION void cp_async_commit() { emulator::close_copies(); }
template <int kPending>
CBA_INSTRUCTION void cp_async_wait() {
  emulator::finish_copies(kPending);
}

inline int kept(int value) { return value; }
inline int thread_anew() { return static_cast<int>(threadIdx.x); }
inline int block_anew() { return static_cast<int>(blockIdx.x); }

}  // namespace cba
