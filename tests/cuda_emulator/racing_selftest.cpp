// Kernels with a race, which `right` avoids. The line that races has a comment that says so.
#include "racing_selftest.h"

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

__device__ int number() { return static_cast<int>(threadIdx.x); }
__device__ int other() { return static_cast<int>(blockDim.x) - 1 - number(); }
__device__ int* shared_ints() { return reinterpret_cast<int*>(cba::dynamic_shared()); }

// Without the barrier, all threads read before they wait for each other.
__global__ void barrier_kernel(int* data, bool right) {
  int* shared = shared_ints();
  shared[number()] = data[number()];
  if (right) __syncthreads();
  data[number()] = shared[other()];  // races
  __syncthreads();
}

// Without the second barrier, slots are written while other threads may still read them.
__global__ void ring_kernel(int* data, bool right) {
  int* shared = shared_ints();
  const int slots = 3, threads = static_cast<int>(blockDim.x);
  int sum = 0;
  for (int turn = 0; turn < 4; ++turn) {
    for (int i = 0; i < slots; ++i) shared[i * threads + number()] = turn;  // races
    __syncthreads();
    for (int i = 0; i < slots; ++i) sum += shared[i * threads + other()];
    if (right) __syncthreads();
  }
  data[number()] = sum;
}

__global__ void warp_kernel(int* data, bool right) {
  int* shared = shared_ints();
  shared[number()] = data[number()];
  if (right) {
    __syncwarp();
  } else {
    __shfl_xor_sync(~0u, number(), 1);  // waits, but orders no memory
  }
  data[number()] = shared[number() ^ 1];  // races
}

// The barrier of a warp does not order accesses of another warp.
__global__ void other_warp_kernel(int* data, bool right) {
  int* shared = shared_ints();
  shared[number()] = data[number()];
  __syncwarp();
  data[number()] = shared[right ? number() ^ 31 : other()];  // races
}

__device__ void copy(int* shared, const int* data) {
  cba::cp_async<4>(shared + number(), data + number());
  cba::cp_async_commit();
}

__global__ void copy_read_kernel(int* data, bool right) {
  int* shared = shared_ints();
  copy(shared, data);
  if (right) cba::cp_async_wait<0>();
  const int found = shared[number()];  // races
  cba::cp_async_wait<0>();
  data[number()] = found;
}

// Each thread waits only for its own copies, and a barrier waits for no copies.
__global__ void copy_barrier_kernel(int* data, bool right) {
  int* shared = shared_ints();
  copy(shared, data);
  if (right) cba::cp_async_wait<0>();
  __syncthreads();
  if (!right) cba::cp_async_wait<0>();
  data[number()] = shared[other()];  // races
}

__global__ void copy_source_kernel(int* data, bool right) {
  copy(shared_ints(), data);
  if (right) cba::cp_async_wait<0>();
  __syncthreads();
  data[other()] = 0;  // races
  cba::cp_async_wait<0>();
}

__global__ void copy_target_kernel(int* data, bool right) {
  int* shared = shared_ints();
  shared[other()] = 0;
  if (right) __syncthreads();
  cba::cp_async<4>(shared + number(), data + number());  // races
  cba::cp_async_commit();
  cba::cp_async_wait<0>();
}

__global__ void matrix_kernel(int* data, bool right) {
  int* shared = shared_ints();
  for (int i = 0; i < 4; ++i) shared[4 * number() + i] = i;
  if (right) __syncwarp();
  std::uint32_t found[4];
  cba::ldmatrix_x4(found, shared + 4 * number());  // races
  data[number()] = static_cast<int>(found[0]);
}

__global__ void blocks_kernel(int* data, bool right) {
  const int mine = number() + static_cast<int>(blockIdx.x * blockDim.x);
  data[right ? mine : mine / 2] = 1;  // races
}

// All blocks read a word, and the last one writes it.
__global__ void blocks_read_kernel(int* data, bool right) {
  const int first = data[0];
  const bool last = blockIdx.x + 1 == gridDim.x;
  if (last && number() == 0) data[right ? 1 : 0] = first;  // races
}

// Bytes of one word belong to different threads.
__global__ void bytes_kernel(int* data, bool right) {
  auto* bytes = reinterpret_cast<unsigned char*>(data);
  bytes[right ? number() : number() / 2] = 1;  // races
}

__global__ void atomic_kernel(int* data, bool right) {
  int* shared = shared_ints();
  if (number() == 0) shared[0] = 0;
  __syncthreads();
  atomicAdd(shared, 1);
  if (right) __syncthreads();
  data[number()] = shared[0];  // races
}

// A finished thread does not take part in barriers.
__global__ void done_kernel(int* data, bool right) {
  int* shared = shared_ints();
  shared[number()] = data[number()];
  if (right) __syncthreads();
  if (number() >= 32) return;
  __syncthreads();
  data[number()] = shared[other()];  // races
}

// The last block adds up what all blocks have written.
__device__ void add_in_last_block(int* data, bool released, bool acquired) {
  int *count = data + 63, *shared = shared_ints();
  if (number() == 1) data[blockIdx.x] = 1;
  __syncthreads();
  if (number() == 0) {
    if (released) __threadfence();
    shared[0] = atomicAdd(count, 1);
    if (acquired) __threadfence();
  }
  __syncthreads();
  if (shared[0] + 1 != static_cast<int>(gridDim.x) || number() != 2) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += data[i];  // races
  data[62] = sum;
}
__global__ void release_kernel(int* data, bool right) { add_in_last_block(data, right, true); }
__global__ void acquire_kernel(int* data, bool right) { add_in_last_block(data, true, right); }

}  // namespace

const std::vector<RacingPair> racing_pairs = {{"barrier", barrier_kernel, 1},
                                              {"ring", ring_kernel, 1},
                                              {"warp", warp_kernel, 1},
                                              {"other warp", other_warp_kernel, 1},
                                              {"copy read", copy_read_kernel, 1},
                                              {"copy barrier", copy_barrier_kernel, 1},
                                              {"copy source", copy_source_kernel, 1},
                                              {"copy target", copy_target_kernel, 1},
                                              {"matrix", matrix_kernel, 1},
                                              {"blocks", blocks_kernel, 4},
                                              {"blocks read", blocks_read_kernel, 4},
                                              {"bytes", bytes_kernel, 1},
                                              {"atomic", atomic_kernel, 1},
                                              {"done", done_kernel, 1},
                                              {"release", release_kernel, 4},
                                              {"acquire", acquire_kernel, 4}};

cudaError_t run_racing(const RacingPair& pair, int* data, bool right) {
  return cba::launch({pair.blocks, 64, 4096, nullptr}, pair.kernel, data, right);
}
