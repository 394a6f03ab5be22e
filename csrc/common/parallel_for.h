// parallel_for(n, num_threads, f): calls f(begin, end) on disjoint ranges that cover [0, n).
//
// The caller works too. A call from inside f runs on the calling thread alone. The first exception
// of f stops the rest and is thrown to the caller.
//
// Where the program has an OpenMP runtime already (PyTorch brings one), use_openmp() makes its
// threads the helpers: they spin for some milliseconds after each of PyTorch's ops, on the very
// cores that threads of our own would need, and are awake at once (1.4 to 2.4 times faster between
// PyTorch's ops on two cores). OpenMP would hang in a process that forked after a parallel region,
// so a forked child works with a pool of its own, and so does a program without OpenMP: a call
// finishes even if no helper can be started, calls from several threads share the pool without
// waiting for each other, and no thread is started before the first call that asks for two.
#pragma once

#include <cstdint>
#include <type_traits>

namespace cba {

using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);

void parallel_for(std::int64_t n, int num_threads, RangeFunction f, void* context);

// The entry point of the GNU runtime, which those of LLVM and Intel have too.
using OpenMpParallel = void (*)(void (*f)(void*), void* context, unsigned num_threads,
                                unsigned flags);

void use_openmp(OpenMpParallel parallel);  // null: threads of our own

template <class F>
void parallel_for(std::int64_t n, int num_threads, F&& f) {
  parallel_for(
      n, num_threads,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
      },
      &f);
}

}  // namespace cba
