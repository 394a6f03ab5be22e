// Runs CUDA kernels on a CPU, so that the sources of csrc/cuda/ can be tested without a GPU.
//
// The threads of a block are fibers of one thread. Each runs until it must wait for others. As on a
// GPU, no order is promised between two barriers; `set_order` chooses the order, so that a missing
// barrier shows as a difference between orders. Warp instructions check that all lanes of their
// mask execute the same instruction. Shared memory starts as NaN and ends at a page without access.
// Asynchronous copies arrive when they are waited for, not earlier. Instrumented kernels are also
// checked for races (races.h). The emulator cannot show races inside one warp instruction, faults
// of the hardware, and speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

// Instructions are inlined, so that calls of the emulator return to a line of the kernel, and so
// that compilers instrument the store of a struct that an instruction returns.
#define CBA_INSTRUCTION __attribute__((always_inline)) inline

namespace emulator {
struct Index {
  unsigned x, y, z;
};
extern Index indices[4];
}  // namespace emulator

static emulator::Index &threadIdx = emulator::indices[0], &blockIdx = emulator::indices[1],
                       &blockDim = emulator::indices[2], &gridDim = emulator::indices[3];

namespace emulator {

inline int thread_number() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
inline int lane() { return thread_number() % 32; }

// 0 runs threads in ascending order, 1 in descending order, any other number in a shuffled one.
void set_order(unsigned order);

// Runs `kernel`, which `thread` calls, for all threads of the grid. Returns false after an error,
// which last_error() tells.
bool run(Index grid, Index block, std::size_t shared, const void* kernel,
         const std::function<void()>& thread);

const char* last_error();

// Waits for the block and returns how many threads voted true, for __syncthreads and its variants.
int sync_block(bool vote);
void sync_warp(unsigned mask);
void fence();

// An atomic operation is a load and a store, because only one fiber runs at a time.
void load_atomic(const void* at, void* value, std::size_t size);
void store_atomic(void* at, const void* value, std::size_t size);

unsigned char* dynamic_shared();

// Says whether kernels cannot race at `address`: in stacks, indices, and slots of warp
// instructions.
bool is_private(const void* address);

// Ends the launch with an error.
[[noreturn]] void fail(const char* what, const char* why);

inline void require_aligned(const void* address, std::size_t size, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % size) fail(what, "is not aligned");
}
void require_shared(const void* address, std::size_t size, const char* what);

// cp.async, and the matrix instructions of ptx.h, which are in matrix.cpp.
void copy_later(void* to, const void* from, int bytes, int size);
// note_copies() starts a list of copies, each with its source address and bytes; noted_copies()
// returns the list and ends it.
void note_copies();
std::vector<std::pair<std::uintptr_t, int>> noted_copies();
void close_copies();
void finish_copies(int pending);
void load_matrices(std::uint32_t (&matrix)[4], const void* row, bool transposed);
void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              bool bfloat16);

// The values that the lanes of a mask give to a warp instruction. All of them can be read while the
// object exists.
class Exchange {
 public:
  Exchange(const char* what, unsigned mask, const void* value, std::size_t size);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  template <class T>
  T of(int lane) const {
    T value;
    std::memcpy(&value, given(lane), sizeof value);
    return value;
  }
  const void* given(int lane) const;
  bool has(int lane) const { return mask_ >> lane & 1; }

  static constexpr std::size_t kSlot = 64;

 private:
  unsigned mask_;
  const char* what_;
};

}  // namespace emulator
