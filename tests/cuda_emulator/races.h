// Finds races in emulated kernels: accesses to the same byte, one of them a write, that nothing
// CUDA promises puts in order. The kernels are compiled with -fsanitize=thread, whose calls before
// every access end in hooks.cpp (ThreadSanitizer's own runtime is not used: it knows threads, but
// not blocks, warps or asynchronous copies). Whether two accesses are ordered does not depend on
// which one the emulator happens to run first, so a missing barrier shows in any order of threads.
//
// What orders accesses:
//   __syncthreads and its like: all threads of the block that take part
//   __syncwarp: the lanes of its mask; the other instructions of warps (shuffles, votes, ldmatrix,
//     mma) wait for each other but order no memory
//   __threadfence around atomics: what a thread did before its fence, and then an atomic, is before
//     what another does after it sees the value by an atomic, and then has its fence
//   the end of a kernel: all streams are taken for one
// Atomics race with plain accesses, not with each other. An ldmatrix reads a row for the lane that
// gives its address and each element for the lane that receives it. An asynchronous copy reads and
// writes at any time from its issue until its thread waits for it: no other access may be
// unordered with any part of that. Plain accesses order nothing, whatever a kernel waits for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {
namespace races {

// An address in the code: where a call returns to.
using Site = const void*;

enum class Kind : std::uint8_t { kRead, kWrite, kAtomic };

// An access, to up to four bytes of one word.
struct Access {
  std::uint32_t block, time;
  Site site;
  std::uint16_t thread;
  std::uint8_t bytes;  // one bit each
  Kind kind;
  bool under_way;  // by an asynchronous copy that was not waited for
};

struct Race {
  Site kernel;
  bool shared;  // memory of the block, else global
  Access before, after;
};

// Said by the emulator, about the thread it runs.
void begin_launch(Site kernel);
void end_launch();
void begin_block(unsigned block, int threads, const void* shared, const void* shared_end);
void resume(int thread);
void finish_thread();
void access(Kind kind, const void* at, std::size_t size, Site site);
void begin_copy(const void* to, std::size_t size, const void* from, std::size_t bytes, Site site);
void finish_copy(const void* to, std::size_t size, const void* from, std::size_t bytes);

// Whether what stands at `site` is to order anything: always, unless a test says otherwise.
bool counts(Site site);
void sync_block();
void sync_warp(int first_thread, unsigned mask);
void fence();
void atomic(const void* at);

// Said by the hooks.
void instrumented();

// Asked by tests.
bool are_sought();                       // whether the kernels are instrumented
std::vector<Race> found();               // since the last call
std::vector<Site> ordering();            // what should have ordered something, since the last call
void discount(std::vector<Site> sites);  // from now on these order nothing
std::size_t checked(bool shared);        // words of accesses, since the module was loaded

}  // namespace races
}  // namespace emulator
