// In place of csrc/cuda/ptx.h: copies are only noted.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace cba {

struct Copy {
  std::uintptr_t to, from;
  std::int64_t bytes, size;
};
inline std::vector<Copy> copies;

template <int kSize>
void cp_async(void* shared, const void* global, int bytes = kSize) {
  copies.push_back({reinterpret_cast<std::uintptr_t>(shared),
                    reinterpret_cast<std::uintptr_t>(global), bytes, kSize});
}

}  // namespace cba
