// Row operations of the segment tree that each instruction set provides; no C++ library header, see
// sweep_body.h.
//
// Rows of bytes start at multiples of kRowPadding bytes and may be read and, where a row is
// written, rewritten unchanged up to kRowPadding bytes past their end. Rows of bits are arrays of
// 64-bit words, bit x in word x / 64.
#pragma once

#include <stdint.h>

namespace cba {

constexpr int32_t kRowPadding = 64;

struct SweepKernels {
  // rises: row[x] < row[x + 1], falls: row[x] > row[x + 1], for 0 <= x < width - 1. Bit width - 1
  // of both is set, as the end of every search; the bits after it have no meaning.
  void (*slopes)(const uint8_t* row, int32_t width, uint64_t* rises, uint64_t* falls);

  // falls: as above, of the row min(above[x], below[x]).
  // saddles, unless null: the quads at x, x + 1 of the two rows in which both pixels of one
  // diagonal are above both pixels of the other; all other bits are 0.
  void (*touch)(const uint8_t* above, const uint8_t* below, int32_t width, uint64_t* falls,
                uint64_t* saddles);

  // Raises maxima[owners[i] * stride + x] to row[x], for the columns x of segment i: those after
  // the last of segment i - 1, to ends[i].
  void (*column_maxima)(const uint8_t* row, const int32_t* ends, const int32_t* owners, int32_t num,
                        uint8_t* maxima, int64_t stride);

  // Raises row[begin .. end] to `value`.
  void (*raise)(uint8_t* row, int32_t begin, int32_t end, uint8_t value);

  // Raises into[x] to min(from[x], cap). Both start like rows; from[x] is zero before `begin` and
  // after `end`.
  void (*fold)(uint8_t* into, const uint8_t* from, int32_t begin, int32_t end, uint8_t cap);

  // The third-highest and the lowest value of the quads at x, x + 1 of two rows, 0 <= x < num.
  void (*quads)(const uint8_t* above, const uint8_t* below, int32_t num, uint8_t* third,
                uint8_t* lowest);

  // at[level] = the first (last) x with values[x] > level, for low <= level < high. `values` starts
  // like a row and is zero before `begin` and after `end`; one value must be as large as `high`.
  void (*first_above)(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                      int32_t* at);
  void (*last_above)(const uint8_t* values, int32_t begin, int32_t end, int32_t low, int32_t high,
                     int32_t* at);

  static const SweepKernels kBaseline, kAvx2, kAvx512;
};

}  // namespace cba
