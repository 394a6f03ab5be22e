// Finds races in emulated kernels: two accesses to the same byte, at least one of them a write,
// that CUDA does not promise to order. The kernels are compiled with -fsanitize=thread, which adds
// a call before every access; these calls are in hooks.cpp. (ThreadSanitizer's own runtime knows
// threads, but not blocks, warps or asynchronous copies.) Whether two accesses are ordered does not
// depend on which one the emulator runs first, so that a missing barrier shows in any order of
// threads.
//
// What orders accesses:
//   __syncthreads and its variants: all threads of the block that take part
//   __syncwarp: the lanes of its mask; the other instructions of warps (shuffles, votes, ldmatrix,
//     mma) wait for each other but order no memory
//   __threadfence around atomics: what a thread did before its fence, and then an atomic, is before
//     what another does after it sees the value by an atomic, and then has its fence
//   the end of a kernel: all streams count as one
// Atomics race with plain accesses, but not with each other. An ldmatrix reads a row for the lane
// that gives its address, and each element for the lane that receives it. An asynchronous copy may
// read and write at any time from its issue until its thread waits for it, so that other accesses
// must be ordered with that whole time. Plain accesses do not order anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {
namespace races {

// The address in the code that a call returns to.
using Site = const void*;

enum class Kind : std::uint8_t { kRead, kWrite, kAtomic };

// An access to up to four bytes of a word.
struct Access {
  std::uint32_t block, time;
  Site site;
  std::uint16_t thread;
  std::uint8_t bytes;  // a bit for each byte
  Kind kind;
  bool under_way;  // by an asynchronous copy that was not waited for
};

struct Race {
  Site kernel;
  bool shared;  // in shared memory, else in global memory
  Access before, after;
};

// Called by the emulator, about the thread that it runs.
void begin_launch(Site kernel);
void end_launch();
void begin_block(unsigned block, int threads, const void* shared, const void* shared_end);
void resume(int thread);
void finish_thread();
void access(Kind kind, const void* at, std::size_t size, Site site);
void begin_copy(const void* to, std::size_t size, const void* from, std::size_t bytes, Site site);
void finish_copy(const void* to, std::size_t size, const void* from, std::size_t bytes);

// Says whether the call at `site` orders accesses: always, unless a test has discounted it.
bool counts(Site site);
void sync_block();
void sync_warp(int first_thread, unsigned mask);
void fence();
void atomic(const void* at);

// Called by the hooks.
void instrumented();

// Called by tests.
bool are_sought();                       // whether the kernels are instrumented
std::vector<Race> found();               // since the last call
std::vector<Site> ordering();            // the calls that order accesses, since the last call
void discount(std::vector<Site> sites);  // these calls no longer order accesses
std::size_t checked(bool shared);        // words that were accessed since the module was loaded

}  // namespace races
}  // namespace emulator
