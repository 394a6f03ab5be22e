// Runs CUDA kernels on a CPU, so that the sources of csrc/cuda/ can be tested without a GPU.
//
// A block's threads are fibers of one thread. Each runs until it has to wait for others: no order
// between two barriers is promised, as on a GPU, and `set_order` chooses which one a run has; a
// missing barrier shows as a difference between orders. Warp instructions check that all lanes of
// their mask execute the same one. Shared memory starts as NaN and ends at a page that no one may
// touch; asynchronous copies arrive when they are waited for, not earlier. Kernels that the
// compiler instruments are checked for races too (races.h). What it cannot show: races inside one
// warp instruction, faults of the hardware, and time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

// Instructions are inlined: so calls of the emulator return to a line of the kernel, and compilers
// instrument where a struct goes that comes out of one (they do not if it comes out of a call).
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

// 0 runs threads in ascending order, 1 in descending, any other in a shuffled one.
void set_order(unsigned order);

// Runs `kernel`, which `thread` calls, in the grid; returns false if something went wrong, which
// `last_error` tells.
bool run(Index grid, Index block, std::size_t shared, const void* kernel,
         const std::function<void()>& thread);

const char* last_error();

// What __syncthreads_count and its like return: how many threads gave true.
int sync_block(bool vote);
void sync_warp(unsigned mask);
void fence();

// Atomics in two steps: one fiber runs at a time.
void load_atomic(const void* at, void* value, std::size_t size);
void store_atomic(void* at, const void* value, std::size_t size);

unsigned char* dynamic_shared();

// Whether no kernel can race at `address`: stacks, indices, what warp instructions exchange.
bool is_private(const void* address);

// Ends the launch with an error.
[[noreturn]] void fail(const char* what, const char* why);

inline void require_aligned(const void* address, std::size_t size, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % size) fail(what, "is not aligned");
}
void require_shared(const void* address, std::size_t size, const char* what);

// cp.async, and what matrix.cpp has of the other instructions in ptx.h.
void copy_later(void* to, const void* from, int bytes, int size);
// What is copied from now on: where from, how many bytes.
void note_copies();
std::vector<std::pair<std::uintptr_t, int>> noted_copies();  // and no more from now on
void close_copies();
void finish_copies(int pending);
void load_matrices(std::uint32_t (&matrix)[4], const void* row, bool transposed);
void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              bool bfloat16);

// What every lane of a mask gives to a warp instruction, readable by all of them in its lifetime.
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
