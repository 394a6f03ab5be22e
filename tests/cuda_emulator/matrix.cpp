// The matrix instructions, with the layouts of fragments in the PTX ISA manual.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "emulator.h"
#include "races.h"

namespace emulator {
namespace {

float widened(std::uint16_t bits, bool bfloat16) {
  return bfloat16 ? __bfloat162float(__nv_bfloat16{bits}) : __half2float(__half{bits});
}

struct Operands {
  std::uint32_t a[4], b[2];
};

}  // namespace

void load_matrices(std::uint32_t (&matrix)[4], const void* row, bool transposed) {
  const races::Site site = __builtin_return_address(0);
  require_aligned(row, 16, "ldmatrix");
  require_shared(row, 16, "ldmatrix");
  races::access(races::Kind::kRead, row, 16, site);
  const Exchange all(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, &row, sizeof row);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    std::uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? 2 * t + j : g, c = transposed ? g : 2 * t + j;
      const auto* from = all.of<const unsigned char*>(8 * i + r) + 2 * c;
      races::access(races::Kind::kRead, from, 2, site);
      std::memcpy(&pair[j], from, 2);
    }
    matrix[i] = pair[0] | std::uint32_t{pair[1]} << 16;
  }
}

void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              bool bfloat16) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Exchange all(bfloat16 ? "mma bf16" : "mma f16", ~0u, &mine, sizeof mine);
  const auto half = [bfloat16](std::uint32_t pair, int k) {
    return static_cast<double>(widened(static_cast<std::uint16_t>(pair >> 16 * (k % 2)), bfloat16));
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    double sum = 0;  // 16 products of halves are exact, as in the hardware before it rounds
    for (int k = 0; k < 16; ++k) {
      // Which lane holds a(row, k) and b(k, column), and in which register.
      const int a_lane = 4 * (row % 8) + k % 8 / 2, a_register = row / 8 + 2 * (k / 8);
      const int b_lane = 4 * column + k % 8 / 2, b_register = k / 8;
      const std::uint32_t left = static_cast<const Operands*>(all.given(a_lane))->a[a_register];
      const std::uint32_t right = static_cast<const Operands*>(all.given(b_lane))->b[b_register];
      sum += half(left, k) * half(right, k);
    }
    d[i] = static_cast<float>(d[i] + sum);
  }
}

}  // namespace emulator
