#include "common/parallel_for.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace cba {
namespace {

// Ranges per thread: so many that items of unequal cost are spread evenly, so few that taking a
// range (an atomic addition) costs nothing in comparison.
constexpr std::int64_t kRangesPerThread = 8;

thread_local bool inside_parallel_for = false;

// One call of parallel_for. The pool's mutex guards `helpers_wanted` and `helpers_active`.
struct Job {
  std::int64_t n;
  std::int64_t range;
  RangeFunction f;
  void* context;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  int helpers_wanted;
  int helpers_active = 0;

  void work() {
    inside_parallel_for = true;
    while (!failed.load(std::memory_order_relaxed)) {
      const std::int64_t begin = next.fetch_add(range);
      if (begin >= n) break;
      try {
        f(context, begin, std::min(n, begin + range));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    inside_parallel_for = false;
  }
};

class Pool {
 public:
  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      add_workers(job.helpers_wanted);
      jobs_.push_back(&job);
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    done_.wait(lock, [&] { return job.helpers_active == 0; });
  }

 private:
  void add_workers(int wanted) {
    // Workers take no signals, because Ctrl-C must interrupt the program's main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; num_workers_ < wanted; ++num_workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The system has no more threads. The caller and the present helpers do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      auto wants_help = [](const Job* job) { return job->helpers_wanted > 0; };
      auto found = std::find_if(jobs_.begin(), jobs_.end(), wants_help);
      if (found == jobs_.end()) {
        wake_.wait(lock);
        continue;
      }
      Job& job = **found;
      --job.helpers_wanted;
      ++job.helpers_active;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.helpers_active == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job*> jobs_;
  int num_workers_ = 0;
};

// The pool is never deleted, because workers wait on it until the process ends. It is reached
// without a lock or a guarded static, which another thread might hold during a fork.
std::atomic<Pool*> current_pool{nullptr};

std::atomic<OpenMpParallel> openmp{nullptr};

// The child of a fork has none of the workers, and a thread that is gone may hold the mutex. The
// same is true of OpenMP's threads.
void forget_pool() {
  current_pool.store(nullptr);
  openmp.store(nullptr);
}

const int at_fork_registered = pthread_atfork(nullptr, nullptr, forget_pool);

Pool& pool() {
  Pool* present = current_pool.load();
  if (present == nullptr) {
    Pool* fresh = new Pool;
    if (current_pool.compare_exchange_strong(present, fresh)) return *fresh;
    delete fresh;
  }
  return *present;
}

}  // namespace

void use_openmp(OpenMpParallel parallel) { openmp.store(parallel); }

void parallel_for(std::int64_t n, int num_threads, RangeFunction f, void* context) {
  if (n <= 0) return;
  const std::int64_t threads = std::min<std::int64_t>(n, std::max(num_threads, 1));
  if (threads == 1 || inside_parallel_for || at_fork_registered != 0) {
    f(context, 0, n);
    return;
  }
  Job job;
  job.n = n;
  job.range = std::max<std::int64_t>(1, n / (threads * kRangesPerThread));
  job.f = f;
  job.context = context;
  job.helpers_wanted = static_cast<int>(threads - 1);
  if (const OpenMpParallel parallel = openmp.load()) {
    // All of num_threads are asked for, as PyTorch does: with another number the runtime would end
    // and start threads.
    parallel([](void* data) { static_cast<Job*>(data)->work(); }, &job, num_threads, 0);
  } else {
    pool().run(job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace cba
