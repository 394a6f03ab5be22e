// The row operations of the segment tree, written once over a small Vec type. Each sweep_<isa>.cpp
// includes this file and defines its Vec type.
//
// Everything is in an unnamed namespace and no C++ library header is included, see quantize_body.h.
//
// A Vec type holds kWidth unsigned bytes, a divisor of 64, and has: load, store, all(value),
// load_first(p, n) (zero from byte n on), min, max, and above(a, b), whose bit i is a[i] > b[i].
#pragma once

#include <stdint.h>

#include "cpu/sweep_kernels.h"

namespace cba {
namespace {

constexpr int32_t kWordBits = 64;

void set_bit(uint64_t* bits, int32_t x) { bits[x / kWordBits] |= uint64_t{1} << (x % kWordBits); }

template <class Vec>
void slopes(const uint8_t* row, int32_t width, uint64_t* rises, uint64_t* falls) {
  for (int32_t x = 0; x < width; x += kWordBits) {
    uint64_t up = 0, down = 0;
    for (int32_t i = 0; i < kWordBits; i += Vec::kWidth) {
      const Vec here = Vec::load(row + x + i), next = Vec::load(row + x + i + 1);
      up |= above(next, here) << i;
      down |= above(here, next) << i;
    }
    rises[x / kWordBits] = up;
    falls[x / kWordBits] = down;
  }
  set_bit(rises, width - 1);
  set_bit(falls, width - 1);
}

template <class Vec, bool kSaddles>
void touch_rows(const uint8_t* above_row, const uint8_t* below_row, int32_t width, uint64_t* falls,
                uint64_t* saddles) {
  for (int32_t x = 0; x < width; x += kWordBits) {
    uint64_t down = 0, saddle = 0;
    for (int32_t i = 0; i < kWordBits; i += Vec::kWidth) {
      const Vec a = Vec::load(above_row + x + i), b = Vec::load(above_row + x + i + 1);
      const Vec c = Vec::load(below_row + x + i), d = Vec::load(below_row + x + i + 1);
      down |= above(min(a, c), min(b, d)) << i;
      if (kSaddles) {
        saddle |= (above(min(a, d), max(b, c)) | above(min(b, c), max(a, d))) << i;
      }
    }
    falls[x / kWordBits] = down;
    if (kSaddles) saddles[x / kWordBits] = saddle;
  }
  set_bit(falls, width - 1);
  if (kSaddles) {
    const int32_t last = width - 1;  // no quad starts there or after
    saddles[last / kWordBits] &= (uint64_t{1} << (last % kWordBits)) - 1;
  }
}

template <class Vec>
void touch(const uint8_t* above_row, const uint8_t* below_row, int32_t width, uint64_t* falls,
           uint64_t* saddles) {
  if (saddles != nullptr) {
    touch_rows<Vec, true>(above_row, below_row, width, falls, saddles);
  } else {
    touch_rows<Vec, false>(above_row, below_row, width, falls, saddles);
  }
}

// Raises into[0 .. n) to from[0 .. n).
template <class Vec>
void raise_to(uint8_t* into, const uint8_t* from, int32_t n) {
  for (; n >= Vec::kWidth; n -= Vec::kWidth, into += Vec::kWidth, from += Vec::kWidth) {
    max(Vec::load(into), Vec::load(from)).store(into);
  }
  if (n > 0) max(Vec::load(into), Vec::load_first(from, n)).store(into);
}

template <class Vec>
void column_maxima(const uint8_t* row, const int32_t* ends, const int32_t* owners, int32_t num,
                   uint8_t* maxima, int64_t stride) {
  int32_t begin = 0;
  for (int32_t i = 0; i < num; ++i) {
    if (i + 1 < num && owners[i + 1] == owners[i]) continue;  // one run for neighbors of one owner
    raise_to<Vec>(maxima + owners[i] * stride + begin, row + begin, ends[i] + 1 - begin);
    begin = ends[i] + 1;
  }
}

template <class Vec>
void raise(uint8_t* row, int32_t begin, int32_t end, uint8_t value) {
  uint8_t values[Vec::kWidth];
  Vec::all(value).store(values);
  for (; begin <= end; begin += Vec::kWidth) {
    const int32_t n = end + 1 - begin < Vec::kWidth ? end + 1 - begin : Vec::kWidth;
    max(Vec::load(row + begin), Vec::load_first(values, n)).store(row + begin);
  }
}

// Loops over begin .. end take whole vectors from here on, which all lie inside the padded row.
template <class Vec>
int32_t vector_start(int32_t x) {
  return x / Vec::kWidth * Vec::kWidth;
}

template <class Vec>
void fold(uint8_t* into, const uint8_t* from, int32_t begin, int32_t end, uint8_t cap) {
  const Vec caps = Vec::all(cap);
  for (int32_t x = vector_start<Vec>(begin); x <= end; x += Vec::kWidth) {
    max(Vec::load(into + x), min(Vec::load(from + x), caps)).store(into + x);
  }
}

template <class Vec>
void quads(const uint8_t* above_row, const uint8_t* below_row, int32_t num, uint8_t* third,
           uint8_t* lowest) {
  for (int32_t x = 0; x < num; x += Vec::kWidth) {
    const Vec a = Vec::load(above_row + x), b = Vec::load(above_row + x + 1);
    const Vec c = Vec::load(below_row + x), d = Vec::load(below_row + x + 1);
    const Vec low_ab = min(a, b), low_cd = min(c, d);
    min(low_ab, low_cd).store(lowest + x);
    min(max(low_ab, low_cd), min(max(a, b), max(c, d))).store(third + x);
  }
}

template <class Vec>
void first_above(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                 int32_t* at) {
  int32_t level = low;
  for (int32_t x = vector_start<Vec>(begin); x <= end && level < high; x += Vec::kWidth) {
    const Vec block = Vec::load(values + x);
    uint64_t found = above(block, Vec::all(static_cast<uint8_t>(level)));
    while (found != 0 && level < high) {
      const int32_t i = __builtin_ctzll(found);
      const int32_t top = values[x + i] < high ? values[x + i] : high;
      for (; level < top; ++level) at[level] = x + i;
      // Values that do not exceed the new level are left out, also the one just taken.
      if (level < high) found = above(block, Vec::all(static_cast<uint8_t>(level)));
    }
  }
}

template <class Vec>
void last_above(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                int32_t* at) {
  const int32_t start = vector_start<Vec>(begin);
  int32_t level = low;
  for (int32_t x = vector_start<Vec>(end); x >= start && level < high; x -= Vec::kWidth) {
    const Vec block = Vec::load(values + x);
    uint64_t found = above(block, Vec::all(static_cast<uint8_t>(level)));
    while (found != 0 && level < high) {
      const int32_t i = 63 - __builtin_clzll(found);
      const int32_t top = values[x + i] < high ? values[x + i] : high;
      for (; level < top; ++level) at[level] = x + i;
      if (level < high) found = above(block, Vec::all(static_cast<uint8_t>(level)));
    }
  }
}

template <class Vec>
constexpr SweepKernels kernels_of() {
  return {slopes<Vec>, touch<Vec>, column_maxima<Vec>, raise<Vec>,
          fold<Vec>,   quads<Vec>, first_above<Vec>,   last_above<Vec>};
}

}  // namespace
}  // namespace cba
