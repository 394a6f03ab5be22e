// csrc/cuda/ptx.h for a CPU. Copies take place as late as they may, when they are waited for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace cba {

inline unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }

namespace emulated {

inline std::uint16_t element(const void* row, int column) {
  std::uint16_t value;
  std::memcpy(&value, static_cast<const unsigned char*>(row) + 2 * column, 2);
  return value;
}

inline void load_matrices(std::uint32_t (&matrix)[4], const void* row, bool transposed) {
  emulator::require_aligned(row, 16, "ldmatrix");
  emulator::require_shared(row, 16, "ldmatrix");
  const void* rows[32];
  emulator::Exchange all(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, &row, sizeof row);
  for (int l = 0; l < 32; ++l) rows[l] = all.of<const void*>(l);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    std::uint32_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? 2 * t + j : g, c = transposed ? g : 2 * t + j;
      pair[j] = element(rows[8 * i + r], c);
    }
    matrix[i] = pair[0] | pair[1] << 16;
  }
}

inline float widened(std::uint16_t bits, __nv_bfloat16) {
  return __bfloat162float(__nv_bfloat16{bits});
}
inline float widened(std::uint16_t bits, __half) { return __half2float(__half{bits}); }

struct Operands {
  std::uint32_t a[4], b[2];
};

template <class Half>
void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              const char* name) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::Exchange all(name, ~0u, &mine, sizeof mine);
  const auto half = [](std::uint32_t pair, int k) {
    return static_cast<std::uint16_t>(pair >> 16 * (k % 2));
  };
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    double sum = 0;  // 16 products of halves: exact, as the hardware's are before it rounds
    for (int k = 0; k < 16; ++k) {
      // Which lane holds a(row, k) and b(k, column), and in which register.
      const int a_lane = 4 * (row % 8) + k % 8 / 2, a_register = row / 8 + 2 * (k / 8);
      const int b_lane = 4 * column + k % 8 / 2, b_register = k / 8;
      const std::uint32_t left = all.of<Operands>(a_lane).a[a_register];
      const std::uint32_t right = all.of<Operands>(b_lane).b[b_register];
      sum += static_cast<double>(widened(half(left, k), Half{})) * widened(half(right, k), Half{});
    }
    d[i] = static_cast<float>(d[i] + sum);
  }
}

}  // namespace emulated

inline void ldmatrix_x4(std::uint32_t (&matrix)[4], const void* row) {
  emulated::load_matrices(matrix, row, false);
}
inline void ldmatrix_x4_trans(std::uint32_t (&matrix)[4], const void* row) {
  emulated::load_matrices(matrix, row, true);
}

inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1, __nv_bfloat16) {
  emulated::multiply<__nv_bfloat16>(d, a, b0, b1, "mma bf16");
}
inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1, __half) {
  emulated::multiply<__half>(d, a, b0, b1, "mma f16");
}

template <int kSize>
void cp_async(void* shared, const void* global, int bytes = kSize) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16);
  emulator::require_aligned(shared, kSize, "cp.async");
  emulator::require_aligned(global, kSize, "cp.async");
  emulator::require_shared(shared, kSize, "cp.async");
  emulator::copy_later(shared, global, bytes, kSize);
}
inline void cp_async_commit() { emulator::close_copies(); }
template <int kPending>
void cp_async_wait() {
  emulator::finish_copies(kPending);
}

inline int thread_anew() { return static_cast<int>(threadIdx.x); }
inline int block_anew() { return static_cast<int>(blockIdx.x); }

}  // namespace cba
