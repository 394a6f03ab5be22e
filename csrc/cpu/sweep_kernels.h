// The row operations of the segment tree of an instruction set. No C++ library header may be
// included here, see sweep_body.h.
//
// Rows of bytes start at multiples of kRowPadding bytes. Operations may read up to kRowPadding
// bytes past the end of a row and, if they write it, write those bytes back unchanged. Rows of bits
// are arrays of 64-bit words, with bit x in word x / 64.
#pragma once

#include <stdint.h>

namespace cba {

constexpr int32_t kRowPadding = 64;

struct SweepKernels {
  // Sets rises to row[x] < row[x + 1] and falls to row[x] > row[x + 1], for 0 <= x < width - 1. Bit
  // width - 1 of both is set to end every search; the bits after it have no meaning.
  void (*slopes)(const uint8_t* row, int32_t width, uint64_t* rises, uint64_t* falls);

  // Sets falls as above, for the row min(above[x], below[x]). Unless saddles is null, sets its bit
  // x if in the quad at x, x + 1 of the two rows both pixels of one diagonal are above both pixels
  // of the other; all other bits are 0.
  void (*touch)(const uint8_t* above, const uint8_t* below, int32_t width, uint64_t* falls,
                uint64_t* saddles);

  // Raises maxima[owners[i] * stride + x] to row[x] for the columns x of segment i, from the one
  // after ends[i - 1] to ends[i].
  void (*column_maxima)(const uint8_t* row, const int32_t* ends, const int32_t* owners, int32_t num,
                        uint8_t* maxima, int64_t stride);

  // Raises row[begin .. end] to `value`.
  void (*raise)(uint8_t* row, int32_t begin, int32_t end, uint8_t value);

  // Raises into[x] to min(from[x], cap). Both are aligned like rows; from[x] is zero before `begin`
  // and after `end`.
  void (*fold)(uint8_t* into, const uint8_t* from, int32_t begin, int32_t end, uint8_t cap);

  // Writes the third-highest and the lowest value of the quad at x, x + 1 of two rows, 0 <= x <
  // num.
  void (*quads)(const uint8_t* above, const uint8_t* below, int32_t num, uint8_t* third,
                uint8_t* lowest);

  // Sets at[level] to the first (last) x with values[x] > level, for low <= level < high. `values`
  // is aligned like a row and zero before `begin` and after `end`; a value must be at least `high`.
  void (*first_above)(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                      int32_t* at);
  void (*last_above)(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                     int32_t* at);

  static const SweepKernels kBaseline, kAvx2, kAvx512;
};

}  // namespace cba
