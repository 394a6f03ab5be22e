// parallel_for(n, num_threads, f): calls f(begin, end) on disjoint ranges that cover [0, n).
//
// The caller works too. A call from inside f runs on the calling thread alone. The first exception
// of f stops the rest and is thrown to the caller.
//
// PyTorch brings an OpenMP runtime, and use_openmp() makes its threads the helpers. After each of
// PyTorch's ops they spin for some milliseconds on the cores that other threads would need, and
// they are awake at once: between PyTorch's ops this is 1.4 to 2.4 times as fast on two cores.
// OpenMP hangs in a process that forked after a parallel region, so forked children use our own
// pool of threads, and so do programs without OpenMP. In the pool a call finishes even if no helper
// can be started, calls from several threads do not wait for each other, and no thread is started
// before the first call that asks for two.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace cba {

using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);

void parallel_for(std::int64_t n, int num_threads, RangeFunction f, void* context);

// The entry point of the GNU runtime, which the runtimes of LLVM and Intel have, too.
using OpenMpParallel = void (*)(void (*f)(void*), void* context, unsigned num_threads,
                                unsigned flags);

void use_openmp(OpenMpParallel parallel);  // null for our own pool

template <class F>
void parallel_for(std::int64_t n, int num_threads, F&& f) {
  parallel_for(
      n, num_threads,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
      },
      &f);
}

// The smallest index that any thread has noted, such as that of the first bad value.
class FirstIndex {
 public:
  void note(std::int64_t index) {
    std::int64_t known = first_.load();
    while (index < known && !first_.compare_exchange_weak(known, index)) {
    }
  }
  // The index, or -1 if none was noted.
  std::int64_t get() const { return first_.load() == kNone ? -1 : first_.load(); }

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_{kNone};
};

}  // namespace cba
