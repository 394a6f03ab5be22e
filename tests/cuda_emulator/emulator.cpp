#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "races.h"

namespace emulator {

Index indices[4];

namespace {

constexpr std::size_t kStack = 128 << 10;
constexpr std::size_t kMostShared = 101376;  // 99 KB, which every chip since sm_80 has
constexpr int kMostThreads = 1024;

bool notes_copies = false;
std::vector<std::pair<std::uintptr_t, int>> copies;

enum class State { kReady, kWaitsForBlock, kWaitsForWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes, size;
};

struct Fiber {
  State state;
  bool started;
  ucontext_t context;
  jmp_buf where;
  Index index;
  unsigned mask;
  const char* what;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> closed;
};

// The stacks of the fibers and the shared memory of a block, behind which lies a page without
// access.
struct Memory {
  Memory() {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    stacks = map(kMostThreads * kStack);
    const std::size_t room = (kMostShared + page - 1) / page * page;
    shared_end = map(room + page) + room;
    mprotect(shared_end, page, PROT_NONE);
  }
  static unsigned char* map(std::size_t size) {
    void* found = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return static_cast<unsigned char*>(found);
  }
  unsigned char *stacks, *shared_end;
};

std::mutex one_launch;
unsigned order = 0;
std::string error;
std::vector<Fiber> fibers(kMostThreads);
int num_threads = 0, current = 0, votes = 0, last_votes = 0;
bool barrier_counts = true;  // whether the next barrier orders accesses
unsigned char *shared = nullptr, *shared_end = nullptr;
alignas(16) unsigned char slots[kMostThreads][Exchange::kSlot];
const std::function<void()>* body = nullptr;
jmp_buf scheduler;

Memory& memory() {
  static Memory all;
  return all;
}

void yield() {
  if (!_setjmp(fibers[current].where)) _longjmp(scheduler, 1);
}

void enter() {
  (*body)();
  fibers[current].state = State::kDone;
  races::finish_thread();
  _longjmp(scheduler, 1);
}

void resume(int i) {
  current = i;
  Fiber& fiber = fibers[i];
  threadIdx = fiber.index;
  races::resume(i);
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void start(int i) {
  Fiber& fiber = fibers[i];
  fiber.state = State::kReady;
  fiber.started = false;
  const unsigned n = static_cast<unsigned>(i);
  fiber.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
  fiber.open.clear();
  fiber.closed.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = memory().stacks + i * kStack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Waits for the lanes of the mask. Returns true in the last of them, which does not wait.
bool meet(unsigned mask, const char* what) {
  Fiber& mine = fibers[current];
  mine.state = State::kWaitsForWarp;
  mine.mask = mask, mine.what = what;
  const int first = current / 32 * 32, end = std::min(first + 32, num_threads);
  for (int i = first; i < end; ++i) {
    if (!(mask >> (i - first) & 1) || fibers[i].state == State::kDone) continue;
    // A lane may wait at another place of the program; this one waits until it comes here.
    if (fibers[i].state != State::kWaitsForWarp || fibers[i].mask != mask) return yield(), false;
    if (std::strcmp(fibers[i].what, what) != 0) fail(what, "meets another warp instruction");
  }
  for (int i = first; i < end; ++i) {
    if (mask >> (i - first) & 1 && fibers[i].state != State::kDone) {
      fibers[i].state = State::kReady;
    }
  }
  return true;
}

// Lets all threads pass a barrier if all that are not done wait for the block.
bool release_block() {
  bool any = false;
  for (int i = 0; i < num_threads; ++i) {
    if (fibers[i].state == State::kWaitsForWarp) return false;
    any |= fibers[i].state == State::kWaitsForBlock;
  }
  for (int i = 0; i < num_threads; ++i) {
    if (fibers[i].state == State::kWaitsForBlock) fibers[i].state = State::kReady;
  }
  last_votes = std::exchange(votes, 0);
  if (std::exchange(barrier_counts, true) && any) races::sync_block();
  return any;
}

bool all_done() {
  return std::all_of(fibers.begin(), fibers.begin() + num_threads,
                     [](const Fiber& f) { return f.state == State::kDone; });
}

void run_block(unsigned number, std::mt19937& random) {
  std::memset(shared, 0xff, shared_end - shared);
  races::begin_block(number, num_threads, shared, shared_end);
  for (int i = 0; i < num_threads; ++i) start(i);
  votes = 0, barrier_counts = true;
  std::vector<int> turns(num_threads);
  std::iota(turns.begin(), turns.end(), 0);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  while (true) {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    bool ran = false;
    for (const int i : turns) {
      if (fibers[i].state != State::kReady) continue;
      resume(i);
      ran = true;
      if (!error.empty()) return;
    }
    if (ran || release_block()) continue;
    if (all_done()) return;
    error = "threads wait for others that never come";
    for (int i = 0; i < num_threads; ++i) {
      if (fibers[i].state == State::kWaitsForWarp) {
        error += std::string(" (thread ") + std::to_string(i) + " in " + fibers[i].what + ")";
        break;
      }
    }
    return;
  }
}

}  // namespace

void set_order(unsigned which) {
  const std::lock_guard<std::mutex> lock(one_launch);
  order = which;
}

bool run(Index grid, Index block, std::size_t bytes, const void* kernel,
         const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch);
  error.clear();
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535 || bytes > kMostShared) {
    error = "invalid configuration of a launch";
    return false;
  }
  num_threads = static_cast<int>(threads);
  gridDim = grid, blockDim = block, body = &thread;
  shared_end = memory().shared_end;
  shared = shared_end - (bytes + 15) / 16 * 16;
  std::mt19937 random(order);
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  races::begin_launch(kernel);
  for (std::size_t i = 0; i < blocks && error.empty(); ++i) {
    const std::size_t b = order == 1 ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(static_cast<unsigned>(b), random);
  }
  races::end_launch();
  return error.empty();
}

const char* last_error() { return error.c_str(); }

int sync_block(bool vote) {
  votes += vote;
  barrier_counts &= races::counts(__builtin_return_address(0));
  fibers[current].state = State::kWaitsForBlock;
  yield();
  return last_votes;
}

void sync_warp(unsigned mask) {
  const bool counts = races::counts(__builtin_return_address(0));
  if (meet(mask, "__syncwarp") && counts) races::sync_warp(current / 32 * 32, mask);
}

void fence() {
  if (races::counts(__builtin_return_address(0))) races::fence();
}

void load_atomic(const void* at, void* value, std::size_t size) {
  races::access(races::Kind::kAtomic, at, size, __builtin_return_address(0));
  races::atomic(at);
  std::memcpy(value, at, size);
}

void store_atomic(void* at, const void* value, std::size_t size) { std::memcpy(at, value, size); }

bool is_private(const void* address) {
  const auto within = [address](const void* begin, std::size_t size) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    return at - reinterpret_cast<std::uintptr_t>(begin) < size;
  };
  return within(memory().stacks, kMostThreads * kStack) || within(indices, sizeof indices) ||
         within(slots, sizeof slots);
}

unsigned char* dynamic_shared() { return shared; }

Exchange::Exchange(const char* what, unsigned mask, const void* value, std::size_t size)
    : mask_(mask), what_(what) {
  if (size > kSlot) fail(what, "gives more than a slot holds");
  if (!(mask >> lane() & 1)) fail(what, "runs in a lane that its mask leaves out");
  std::memcpy(slots[current], value, size);
  meet(mask, what);
}

Exchange::~Exchange() { meet(mask_, what_); }

const void* Exchange::given(int lane) const { return slots[current / 32 * 32 + lane]; }

void fail(const char* what, const char* why) {
  if (error.empty()) {
    error = std::string(what) + " " + why + " (thread " + std::to_string(current) + " of block " +
            std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
            std::to_string(blockIdx.z) + ")";
  }
  _longjmp(scheduler, 1);
}

void require_shared(const void* address, std::size_t size, const char* what) {
  const auto* at = static_cast<const unsigned char*>(address);
  if (at < shared || at + size > shared_end) fail(what, "is outside the dynamic shared memory");
}

void copy_later(void* to, const void* from, int bytes, int size) {
  if (bytes < 0 || bytes > size) fail("cp.async", "copies more than its size");
  races::begin_copy(to, size, from, bytes, __builtin_return_address(0));
  fibers[current].open.push_back({to, from, bytes, size});
  if (notes_copies) copies.emplace_back(reinterpret_cast<std::uintptr_t>(from), bytes);
}

void note_copies() { notes_copies = true; }

std::vector<std::pair<std::uintptr_t, int>> noted_copies() {
  notes_copies = false;
  return std::exchange(copies, {});
}

void close_copies() {
  Fiber& fiber = fibers[current];
  fiber.closed.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void finish_copies(int pending) {
  const bool counts = races::counts(__builtin_return_address(0));
  auto& closed = fibers[current].closed;
  for (; closed.size() > static_cast<std::size_t>(pending); closed.pop_front()) {
    for (const Copy& copy : closed.front()) {
      if (counts) races::finish_copy(copy.to, copy.size, copy.from, copy.bytes);
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
    }
  }
}

}  // namespace emulator
