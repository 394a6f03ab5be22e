// The functions that code compiled with -fsanitize=thread calls, in place of the sanitizer's
// runtime. GCC adds no calls for memcpy and the like, and for a struct that a call returns into
// memory.
#include <cstddef>

#include "races.h"

namespace {

using emulator::races::access;
using emulator::races::Kind;

}  // namespace

#define CBA_SITE __builtin_return_address(0)
#define CBA_HOOKS(size)                                                                   \
  void __tsan_read##size(void* at) { access(Kind::kRead, at, size, CBA_SITE); }           \
  void __tsan_write##size(void* at) { access(Kind::kWrite, at, size, CBA_SITE); }         \
  void __tsan_unaligned_read##size(void* at) { access(Kind::kRead, at, size, CBA_SITE); } \
  void __tsan_unaligned_write##size(void* at) { access(Kind::kWrite, at, size, CBA_SITE); }

extern "C" {
void __tsan_init() { emulator::races::instrumented(); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
CBA_HOOKS(1)
CBA_HOOKS(2)
CBA_HOOKS(4)
CBA_HOOKS(8)
CBA_HOOKS(16)
void __tsan_read_range(void* at, std::size_t size) { access(Kind::kRead, at, size, CBA_SITE); }
void __tsan_write_range(void* at, std::size_t size) { access(Kind::kWrite, at, size, CBA_SITE); }
}
