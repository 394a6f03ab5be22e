#include "races.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "emulator.h"

namespace emulator {
namespace races {
namespace {

// Time is the number of events so far that order accesses. A thread knows of another one up to a
// time: what the other did before that comes before all that the thread does from now on.
using Time = std::uint32_t;

// Up to when threads, by (block, thread), are known through fences and atomics.
using Known = std::map<std::pair<std::uint32_t, int>, Time>;
using KnownPtr = std::shared_ptr<const Known>;

struct Thread {
  bool done;
  Time arrived;                // up to when all threads of the block know of this one
  std::array<Time, 32> lanes;  // up to when this thread knows of the lanes of its warp
  KnownPtr acquired;           // up to when it knows of all other threads
  KnownPtr seen;               // what its next fence acquires
  KnownPtr released;           // what its last fence released
};

// The accesses to four bytes that a later one may race with. `writes` holds atomics too.
struct Word {
  std::vector<Access> reads, writes;
};

constexpr std::size_t kPage = 1024;  // words
constexpr std::size_t kMostRaces = 64;

bool is_instrumented = false, running = false;
Site kernel = nullptr;
std::uint32_t block = 0;
Time now = 0;
int me = 0, num_threads = 0;
std::vector<Thread> threads;
std::uintptr_t shared = 0, shared_end = 0;
std::vector<Word> shared_words;
std::unordered_map<std::uintptr_t, std::unique_ptr<std::array<Word, kPage>>> pages;
std::unordered_map<std::uintptr_t, KnownPtr> by_atomics;  // what atomics release, by address
std::map<std::tuple<Site, Site, Kind, Site, Kind>, Race> races;
std::set<Site> orderings, discounted;
std::size_t num_checked[2] = {};

Time of(const KnownPtr& known, std::uint32_t which, int thread) {
  if (!known) return 0;
  const auto found = known->find({which, thread});
  return found == known->end() ? 0 : found->second;
}

KnownPtr joined(const KnownPtr& a, const KnownPtr& b) {
  if (!a || !b || a == b) return a ? a : b;
  auto all = std::make_shared<Known>(*a);
  for (const auto& [who, time] : *b) {
    Time& known = (*all)[who];
    known = std::max(known, time);
  }
  return all;
}

// Returns up to when the running thread knows of another thread of its block.
Time known_of(int other) {
  const Thread& thread = threads[me];
  Time time = std::max(threads[other].arrived, of(thread.acquired, block, other));
  if (other / 32 == me / 32) time = std::max(time, thread.lanes[other % 32]);
  return time;
}

bool is_before_this(const Access& access) {
  if (access.under_way) return false;
  if (access.block != block) {
    return access.time < of(threads[me].acquired, access.block, access.thread);
  }
  return access.thread == me || access.time < known_of(access.thread);
}

bool in_shared(std::uintptr_t at) { return at >= shared && at < shared_end; }

Word& word_at(std::uintptr_t at) {
  if (in_shared(at)) return shared_words[(at - shared) / 4];
  auto& page = pages[at / 4 / kPage];
  if (!page) page = std::make_unique<std::array<Word, kPage>>();
  return (*page)[at / 4 % kPage];
}

void check(const std::vector<Access>& earlier, const Access& access, std::uintptr_t at) {
  for (const Access& other : earlier) {
    if (!(other.bytes & access.bytes) || is_before_this(other)) continue;
    if (other.kind == Kind::kAtomic && access.kind == Kind::kAtomic) continue;
    if (races.size() == kMostRaces) return;
    races.emplace(std::make_tuple(kernel, other.site, other.kind, access.site, access.kind),
                  Race{kernel, in_shared(at), other, access});
  }
}

// Forgets accesses that all threads of the block know, and accesses of blocks that are done, except
// for one, which is as unordered with accesses of later blocks as the others. (If fences order some
// of them, a race with a forgotten one is not found.)
void forget_some(std::vector<Access>& all) {
  std::array<bool, 16> kept = {};
  all.erase(std::remove_if(all.begin(), all.end(),
                           [&](const Access& a) {
                             const bool settled =
                                 a.block != block || a.time < threads[a.thread].arrived;
                             if (a.under_way || a.kind == Kind::kWrite || !settled) return false;
                             return std::exchange(kept[a.bytes], true);
                           }),
            all.end());
}

void note(std::vector<Access>& all, const Access& access) {
  for (auto old = all.rbegin(); old != all.rend() && access.kind != Kind::kWrite; ++old) {
    if (old->thread != access.thread || old->block != block || old->kind != access.kind) continue;
    if (old->bytes != access.bytes || old->under_way || access.under_way) continue;
    *old = access;
    return;
  }
  if (all.size() == all.capacity() && all.size() >= 32) forget_some(all);
  all.push_back(access);
}

// Forgets accesses to bytes that are written: what is ordered after the write is ordered after
// these.
void forget_bytes(std::vector<Access>& all, std::uint8_t bytes) {
  for (Access& access : all) access.bytes &= static_cast<std::uint8_t>(~bytes);
  all.erase(std::remove_if(all.begin(), all.end(), [](const Access& a) { return a.bytes == 0; }),
            all.end());
}

template <class F>
void for_each_word(const void* begin, std::size_t size, const F& f) {
  auto at = reinterpret_cast<std::uintptr_t>(begin);
  for (const std::uintptr_t end = at + size; at < end;) {
    const std::uintptr_t word = at / 4 * 4, next = std::min(word + 4, end);
    f(word, static_cast<std::uint8_t>((1 << (next - at)) - 1) << (at - word));
    at = next;
  }
}

void access_words(Kind kind, const void* begin, std::size_t size, Site site, bool under_way) {
  for_each_word(begin, size, [&](std::uintptr_t at, int bytes) {
    const Access access = {
        block, now,      site, static_cast<std::uint16_t>(me), static_cast<std::uint8_t>(bytes),
        kind,  under_way};
    ++num_checked[in_shared(at)];
    Word& word = word_at(at);
    check(word.writes, access, at);
    if (kind != Kind::kRead) check(word.reads, access, at);
    if (kind == Kind::kWrite) {
      forget_bytes(word.reads, access.bytes);
      forget_bytes(word.writes, access.bytes);
    }
    note(kind == Kind::kRead ? word.reads : word.writes, access);
  });
}

// Returns what this thread knows, including itself.
KnownPtr all_known() {
  const KnownPtr& acquired = threads[me].acquired;
  auto all = acquired ? std::make_shared<Known>(*acquired) : std::make_shared<Known>();
  for (int i = 0; i < num_threads; ++i) (*all)[{block, i}] = i == me ? now : known_of(i);
  return all;
}

}  // namespace

void instrumented() { is_instrumented = true; }
bool are_sought() { return is_instrumented; }

void begin_launch(Site which) {
  if (!is_instrumented) return;
  running = true, kernel = which, now = 0;
  pages.clear();  // a launch comes after all that was before it
  by_atomics.clear();
}

void end_launch() { running = false; }

void begin_block(unsigned which, int count, const void* begin, const void* end) {
  if (!running) return;
  block = which, num_threads = count, ++now;
  threads.assign(count, Thread{});
  shared = reinterpret_cast<std::uintptr_t>(begin);
  shared_end = reinterpret_cast<std::uintptr_t>(end);
  shared_words.assign((shared_end - shared) / 4, Word{});
  for (auto at = by_atomics.begin(); at != by_atomics.end();) {
    at = in_shared(at->first) ? by_atomics.erase(at) : std::next(at);
  }
}

void resume(int thread) { me = thread; }

void finish_thread() {
  if (running) threads[me].done = true;
}

void access(Kind kind, const void* at, std::size_t size, Site site) {
  if (running && !is_private(at)) access_words(kind, at, size, site, false);
}

void begin_copy(const void* to, std::size_t size, const void* from, std::size_t bytes, Site site) {
  if (!running) return;
  access_words(Kind::kRead, from, bytes, site, true);
  access_words(Kind::kWrite, to, size, site, true);
}

void finish_copy(const void* to, std::size_t size, const void* from, std::size_t bytes) {
  const auto finish = [](std::vector<Access>& all) {
    for (Access& access : all) {
      if (access.under_way && access.thread == me) access.under_way = false, access.time = now;
    }
  };
  if (!running) return;
  for_each_word(from, bytes, [&](std::uintptr_t at, int) { finish(word_at(at).reads); });
  for_each_word(to, size, [&](std::uintptr_t at, int) { finish(word_at(at).writes); });
}

bool counts(Site site) {
  if (!running) return false;
  orderings.insert(site);
  return discounted.count(site) == 0;
}

void sync_block() {
  ++now;
  KnownPtr acquired;
  for (me = 0; me < num_threads; ++me) {
    if (threads[me].done) continue;
    acquired = joined(acquired, threads[me].acquired);
    // All threads now know of finished threads what one of them knew.
    for (int i = 0; i < num_threads; ++i) {
      if (threads[i].done) threads[i].arrived = known_of(i);
    }
  }
  for (Thread& thread : threads) {
    if (!thread.done) thread.arrived = now, thread.acquired = acquired;
  }
}

void sync_warp(int first_thread, unsigned mask) {
  ++now;
  const auto for_each = [&](const auto& f) {
    for (int l = 0; l < 32 && first_thread + l < num_threads; ++l) {
      if (mask >> l & 1 && !threads[first_thread + l].done) f(l, threads[first_thread + l]);
    }
  };
  std::array<Time, 32> lanes = {};
  KnownPtr acquired;
  for_each([&](int, const Thread& thread) {
    for (int l = 0; l < 32; ++l) lanes[l] = std::max(lanes[l], thread.lanes[l]);
    acquired = joined(acquired, thread.acquired);
  });
  for_each([&](int l, const Thread&) { lanes[l] = now; });
  for_each([&](int, Thread& thread) { thread.lanes = lanes, thread.acquired = acquired; });
}

void fence() {
  ++now;
  Thread& thread = threads[me];
  thread.acquired = joined(thread.acquired, thread.seen);
  thread.released = all_known();
}

void atomic(const void* at) {
  if (!running) return;
  Thread& thread = threads[me];
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  const auto found = by_atomics.find(address);
  if (found != by_atomics.end()) thread.seen = joined(thread.seen, found->second);
  if (thread.released) by_atomics[address] = joined(by_atomics[address], thread.released);
}

std::vector<Race> found() {
  std::vector<Race> all;
  for (const auto& entry : std::exchange(races, {})) all.push_back(entry.second);
  return all;
}

std::vector<Site> ordering() {
  const std::set<Site> all = std::exchange(orderings, {});
  return {all.begin(), all.end()};
}

void discount(std::vector<Site> sites) { discounted = {sites.begin(), sites.end()}; }

std::size_t checked(bool in_shared) { return num_checked[in_shared]; }

}  // namespace races
}  // namespace emulator
