// The PTX instructions that kernels use, each as a function, for sm_80 and newer.
// tests/cuda_emulator/ has the same functions for a CPU, with the layouts of fragments in the PTX
// ISA manual.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cba {

// The dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char cba_dynamic_shared[];
  return cba_dynamic_shared;
}

__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Loads or stores a word of shared memory that other threads of the block may change meanwhile, by
// this store or by atomics.
__device__ __forceinline__ int load_relaxed(const int* shared) {
  int value;
  asm volatile("ld.relaxed.cta.shared.s32 %0, [%1];"
               : "=r"(value)
               : "r"(shared_address(shared))
               : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(int* shared, int value) {
  asm volatile("st.relaxed.cta.shared.s32 [%0], %1;"
               :
               : "r"(shared_address(shared)), "r"(value)
               : "memory");
}

// Loads four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix
// l / 8 (16 bytes, aligned); matrix[i] receives elements (l / 4, 2 * (l % 4) + {0, 1}).
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, transposed: matrix[i] receives elements (2 * (l % 4) + {0, 1}, l / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b for a (16, 16), b (16, 8), d (16, 8) float32. With g = lane / 4, t = lane % 4:
//   a[0] = a(g, 2t..), a[1] = a(g + 8, 2t..), a[2] = a(g, 2t + 8..), a[3] = a(g + 8, 2t + 8..)
//   b0 = b(2t.., g), b1 = b(2t + 8.., g)
//   d[0] = d(g, 2t), d[1] = d(g, 2t + 1), d[2] = d(g + 8, 2t), d[3] = d(g + 8, 2t + 1)
// where ".." stands for the pair that begins there, with its first element in the low half.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts to copy `bytes` bytes (0 to kSize) from global to shared memory, filled up to kSize with
// zeros. kSize is 4, 8 or 16, and both addresses are aligned to it. `global` must be a valid
// address even if nothing is read.
template <int kSize>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes = kSize) {
  if constexpr (kSize == 16) {  // around the L1 cache, because a block reads its data once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "n"(kSize), "r"(bytes)
                 : "memory");
  }
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all groups of this thread except the kPending latest ones.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// threadIdx.x and blockIdx.x, read anew. The compiler then computes values from them after a long
// loop instead of keeping these in registers that the loop needs.
__device__ __forceinline__ int thread_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

__device__ __forceinline__ int block_anew() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

// The same value, which the compiler keeps in a register: it would compute a simple one anew in each
// turn of a loop.
__device__ __forceinline__ int kept(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace cba
