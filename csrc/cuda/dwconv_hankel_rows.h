// Loads rows of images for the tensor cores: first by asynchronous copies as they lie in global
// memory, then shifted to the beginning of the window, with zeros outside the image.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/dwconv_hankel.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace cba {
namespace {

constexpr int kHankelStages = 4;  // rows that are being loaded or used
constexpr int kHankelWarps = 4;   // the most warps of a block, which share a channel

// The taps that can meet the image: rows x columns in the middle of the kernel.
struct HankelTaps {
  int rows, columns, first_row, first_column;
};

inline HankelTaps hankel_taps(int kernel_height, int kernel_width, std::int64_t height,
                              std::int64_t width) {
  const int rows = static_cast<int>(std::min<std::int64_t>(kernel_height, 2 * height - 1));
  const int columns = static_cast<int>(std::min<std::int64_t>(kernel_width, 2 * width - 1));
  return {rows, columns, (kernel_height - rows) / 2, (kernel_width - columns) / 2};
}

inline std::int64_t quotient_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The bytes of a row of `elements` (a multiple of 8) that is copied in pieces of 16 bytes, aligned
// in global memory, and of the columns before the image, rounded up to pieces.
__host__ __device__ constexpr int hankel_staged_bytes(int elements) {
  return 16 * (elements / 8 + 2);
}

// The words of a copy of a row that is laid out twice; the second copy begins 16 banks after the
// first.
__host__ __device__ inline int hankel_copy_words(int elements) {
  return (elements / 2 + 15) / 32 * 32 + 16;
}

// The bytes from one image of a warp to the next: at least `bytes`, a multiple of 16. Lane l works
// on image l % images. The words that the lanes of an image access at the same time (32 / images
// successive words, or 16 bytes) are then in other banks than those of the other images.
__host__ __device__ constexpr int hankel_image_bytes(int bytes, int images) {
  const int banks = 128 / images;
  while (images > 1 && bytes % (2 * banks) != banks) bytes += 16;
  return bytes;
}

// `length` columns of an image of `width` columns from `start` on, which may lie outside.
struct HankelWindow {
  int start, length, width;
  __device__ int first() const { return max(start, 0); }
  __device__ int end() const { return min(start + length, width); }
};

// A lane's part of a row on its way to shared memory.
struct HankelPieces {
  const unsigned char* from;  // the element that begins the window's part of the row, 16 bytes
                              // further for each lane
  int room;                   // bytes from there to the end of that part
  int to;                     // where the piece of that address begins in the staged row
  int lanes;                  // that copy a row

  template <class Half>
  __device__ HankelPieces(const Half* row, const HankelWindow& window, int lane, int lanes)
      : lanes(lanes) {
    const int first = window.first();
    from = reinterpret_cast<const unsigned char*>(row + first) + 16 * lane;
    room = 2 * (window.end() - first) - 16 * lane;
    to = 16 * ((first - window.start + 7) / 8 + lane);
  }
  __device__ unsigned phase() const {  // the row's address; only its lowest bits matter
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(from));
  }
};

// Starts to copy the part of the window inside the image, in aligned pieces of 16 bytes. The last
// piece ends with the row. The first one may begin up to 14 bytes before the row, but in the same
// allocation, which begins at a multiple of 256 bytes. A lane copies at most kTurns pieces, if that
// is not 0.
template <int kTurns = 0>
__device__ __forceinline__ void hankel_stage(unsigned char* staged, const HankelPieces& p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p.from);
  const int place = static_cast<int>(address % 16), stride = 16 * p.lanes;
  const auto* from = reinterpret_cast<const unsigned char*>(address - address % 16);
  const auto copy = [&](int turn) {
    const int left = p.room + place - turn * stride;
    if (left > 0) {
      cp_async<16>(staged + p.to + turn * stride, from + turn * stride, min(left, 16));
    }
    return left > stride;
  };
  if constexpr (kTurns > 0) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) copy(turn);
  } else {
    for (int turn = 0; copy(turn); ++turn) {
    }
  }
}

// A mask for a word with columns `column` and the next one: ones for those in the image.
__device__ __forceinline__ std::uint32_t hankel_mask(int column, int width) {
  const auto inside = [width](int c) {
    return static_cast<unsigned>(c) < static_cast<unsigned>(width);
  };
  return (inside(column) ? 0x0000ffffu : 0) | (inside(column + 1) ? 0xffff0000u : 0);
}

// Lays a staged row out: to[i] is the pair of the window's elements from 2 i on and, if kTwice,
// to[copy_words + i] the pair from 2 i + 1 on, with zeros for columns outside [0, width). `phase`
// is that of the row's pieces. Words beside the copied ones hold anything, and become zeros.
// kUnrolled turns of the loop are unrolled.
template <bool kTwice, int kUnrolled = 2>
__device__ __forceinline__ void hankel_lay_out(const unsigned char* staged, unsigned phase,
                                               const HankelWindow& window, std::uint32_t* to,
                                               int copy_words, int lane, int lanes) {
  const unsigned lead = window.first() - window.start;
  const unsigned at = phase % 16 / 2 + (lead + 7) / 8 * 8 - lead + 2 * lane;
  const auto* words = reinterpret_cast<const std::uint32_t*>(staged) + at / 2;
  const unsigned shift = at % 2 * 16;
#pragma unroll kUnrolled
  for (int i = 0; i < window.length / 2 - lane; i += lanes) {
    const int column = window.start + 2 * (lane + i);
    const std::uint32_t low = words[i], high = words[i + 1];
    to[lane + i] = __funnelshift_r(low, high, shift) & hankel_mask(column, window.width);
    if constexpr (kTwice) {
      to[copy_words + lane + i] =
          __funnelshift_rc(low, high, shift + 16) & hankel_mask(column + 1, window.width);
    }
  }
}

// Where a lane finds the registers of a Hankel matrix, B[k, n] = element k + n of a row that is
// laid out twice. With g = lane / 4 and t = lane % 4, the fragment of rows from 8 m and columns
// from 8 n on is the pair of elements from 2 t + g + 8 (m + n) on. It is an aligned word, in the
// second copy if g is odd.
__device__ __forceinline__ const std::uint32_t* hankel_fragments(const std::uint32_t* row,
                                                                 int copy_words, int lane) {
  const int g = lane / 4, t = lane % 4;
  return row + g % 2 * copy_words + g / 2 + t;
}

// Loads the fragments from 8 m on into b. If `moved`, b holds the fragments from 8 (m - 2) on, so
// that all but two are already there.
template <int kCount>
__device__ __forceinline__ void hankel_load(std::uint32_t (&b)[kCount],
                                            const std::uint32_t* fragments, int m, bool moved) {
#pragma unroll
  for (int i = 0; i + 2 < kCount; ++i) b[i] = moved ? b[i + 2] : fragments[4 * (m + i)];
#pragma unroll
  for (int i = kCount > 2 ? kCount - 2 : 0; i < kCount; ++i) b[i] = fragments[4 * (m + i)];
}

}  // namespace
}  // namespace cba
