// Runs CUDA kernels on a CPU, so that the sources of csrc/cuda/ can be tested without a GPU.
//
// A block's threads are fibers of one thread. Each runs until it has to wait for others: no order
// between two barriers is promised, as on a GPU, and `set_order` chooses which one a run has; a
// missing barrier shows as a difference between orders. Warp instructions check that all lanes of
// their mask execute the same one. Shared memory starts as NaN and ends at a page that no one may
// touch; asynchronous copies arrive when they are waited for, not earlier. What it cannot show:
// races inside one warp instruction, the memory model between blocks, and time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulator {
struct Index {
  unsigned x, y, z;
};
}  // namespace emulator

extern emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline int thread_number() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
inline int lane() { return thread_number() % 32; }

// 0 runs threads in ascending order, 1 in descending, any other in a shuffled one.
void set_order(unsigned order);

// Runs the grid; returns false if something went wrong, which `last_error` tells.
bool run(Index grid, Index block, std::size_t shared, const std::function<void()>& thread);

const char* last_error();

// What __syncthreads_count and its like return: how many threads gave true.
int sync_block(bool vote);
void sync_warp(unsigned mask, const char* what);

unsigned char* dynamic_shared();

// Ends the launch with an error.
[[noreturn]] void fail(const char* what, const char* why);

inline void require_aligned(const void* address, std::size_t size, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % size) fail(what, "is not aligned");
}
void require_shared(const void* address, std::size_t size, const char* what);

void copy_later(void* to, const void* from, int bytes, int size);
void close_copies();
void finish_copies(int pending);

unsigned char* slot_of(int lane);

// What every lane of a mask gives to a warp instruction, readable by all of them in its lifetime.
class Exchange {
 public:
  Exchange(const char* what, unsigned mask, const void* value, std::size_t size)
      : mask_(mask), what_(what) {
    if (size > kSlot) fail(what, "gives more than a slot holds");
    if (!(mask >> lane() & 1)) fail(what, "runs in a lane that its mask leaves out");
    std::memcpy(slot_of(lane()), value, size);
    sync_warp(mask, what);
  }
  ~Exchange() { sync_warp(mask_, what_); }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  template <class T>
  T of(int lane) const {
    T value;
    std::memcpy(&value, slot_of(lane), sizeof value);
    return value;
  }
  bool has(int lane) const { return mask_ >> lane & 1; }

  static constexpr std::size_t kSlot = 64;

 private:
  unsigned mask_;
  const char* what_;
};

}  // namespace emulator
