#include <algorithm>
#include <cstdint>

#include "cuda/dwconv_strip.h"
#include "cuda/dwconv_strip_lines.h"
#include "cuda/floating.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace cba {
namespace {

// The layout of shared memory: the kernel's taps, the results of each warp, a tile of images, and
// the next tile, which for a standing strip is not yet transposed.
template <int kAcross, int kColumns, int kReach>
struct Layout {
  static constexpr int kTapsRow = 16 * kReach + 16;  // elements; zeros on both sides of the taps
  static constexpr int kTaps = 2 * kAcross * kTapsRow;
  static constexpr int kLyingRow = 16 * (kColumns | 1), kStandingRow = 48;  // bytes
  static constexpr int kOut =
      16 * kLyingRow > 8 * kColumns* kStandingRow ? 16 * kLyingRow : 8 * kColumns * kStandingRow;
  static constexpr int kTiles = kTaps + kStripWarps * kOut;
  static_assert(kTaps % 16 == 0 && kOut % 16 == 0);
};

// Writes the channel's taps to shared memory, with zeros around them, for band_of.
template <class L, int kAcross, int kReach, class Half>
__device__ void fill_taps(Half* to, const StripPlan<Half>& p, std::int64_t channel) {
  const Half* from = p.kernel + channel * p.kernel_size;
  for (int i = static_cast<int>(threadIdx.x); i < kAcross * L::kTapsRow; i += kStripThreads) {
    const int line = i / L::kTapsRow - kAcross / 2 + p.lines / 2;
    const int tap = i % L::kTapsRow - (8 * kReach + 7) + p.taps / 2;
    const bool used = 0 <= line && line < p.lines && 0 <= tap && tap < p.taps;
    const int at = (tap + p.first_tap) * p.tap_step + line * p.line_step;
    if (used) {
      to[i] = from[p.turned ? p.kernel_size - 1 - at : at];
    } else {
      store_one(to + i, 0.0f);
    }
  }
}

// Loads the registers of the bands T_r. band[r][m + R] belongs to the matrix that is m steps of 8
// away from its outputs: the pair of taps k - n = 8 m + 2 t - g and the next one, where k = 2 t and
// n = g with g = lane / 4 and t = lane % 4.
template <class L, int kAcross, int kReach, class Half>
__device__ __forceinline__ void band_of(std::uint32_t (&band)[kAcross][2 * kReach + 1],
                                        const Half* taps, int lane) {
  const auto* at = reinterpret_cast<const std::uint16_t*>(taps) + 2 * (lane % 4) - lane / 4 + 7;
#pragma unroll
  for (int r = 0; r < kAcross; ++r) {
#pragma unroll
    for (int m = 0; m <= 2 * kReach; ++m) {
      const std::uint16_t* pair = at + r * L::kTapsRow + 8 * m;
      band[r][m] = pair[0] | std::uint32_t{pair[1]} << 16;
    }
  }
}

// Adds the products of the fragments in [first_step, end_step), counted in steps of 16 along the
// strip from the first output on. `lines` is this lane's row of the first fragment.
template <int kAcross, int kColumns, int kReach, class Half>
__device__ __forceinline__ void multiply(float (&sum)[kColumns][4],
                                         const std::uint32_t (&band)[kAcross][2 * kReach + 1],
                                         const unsigned char* lines, int row_bytes, int first_step,
                                         int end_step) {
#pragma unroll
  for (int step = -((kReach + 1) / 2); 2 * step <= kColumns - 1 + kReach; ++step) {
    if (step < first_step || step >= end_step) continue;
    std::uint32_t a[2][4];
    ldmatrix_x4(a[0], lines + 32 * step);
#pragma unroll
    for (int r = 0; r < kAcross; ++r) {
      if (r + 1 < kAcross) ldmatrix_x4(a[(r + 1) % 2], lines + (r + 1) * row_bytes + 32 * step);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const int m = 2 * step - column + kReach;  // the first of two matrices of the band
        if (m < -1 || m > 2 * kReach) continue;
        mma_m16n8k16(sum[column], a[r % 2], m < 0 ? 0 : band[r][m],
                     m + 1 > 2 * kReach ? 0 : band[r][m + 1], Half{});
      }
    }
  }
}

// Stores the first `count` of 8 elements, in pieces as wide as the alignment allows.
template <class Half>
__device__ __forceinline__ void store(Half* to, const uint4& eight, int count, int bytes) {
  if (bytes >= 16 && count >= 8) {
    *reinterpret_cast<uint4*>(to) = eight;
    return;
  }
  auto* halves = reinterpret_cast<std::uint16_t*>(to);
  const std::uint32_t pairs[] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (bytes >= 4 && 2 * i + 1 < count) {
      *reinterpret_cast<std::uint32_t*>(halves + 2 * i) = pairs[i];
    } else {
      if (2 * i < count) halves[2 * i] = static_cast<std::uint16_t>(pairs[i]);
      if (2 * i + 1 < count) halves[2 * i + 1] = static_cast<std::uint16_t>(pairs[i] >> 16);
    }
  }
}

// Stores a warp's 16 lines from `line` on and outputs from `along` on, through shared memory `out`.
template <class L, int kColumns, class Half>
__device__ __forceinline__ void store_sums(const float (&sum)[kColumns][4], unsigned char* out,
                                           const StripPlan<Half>& p, int first_line, Half* y,
                                           int images, int line, int along) {
  const int lane = thread_anew() % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* pair = sum[column] + 2 * half;
      if (p.standing) {
        unsigned char* at = out + (8 * column + 2 * t) * L::kStandingRow + 16 * half + 2 * g;
        store_one(reinterpret_cast<Half*>(at), pair[0]);
        store_one(reinterpret_cast<Half*>(at + L::kStandingRow), pair[1]);
      } else {
        unsigned char* at = out + (8 * half + g) * L::kLyingRow + 16 * column + 4 * t;
        store_pair(reinterpret_cast<Half*>(at), pair[0], pair[1]);
      }
    }
  }
  __syncwarp();
  for (int i = lane; i < 16 * kColumns; i += 32) {  // pieces of 8 elements
    const int row = p.standing ? i / 2 : i / kColumns;
    const int piece = p.standing ? i % 2 : i % kColumns;
    const int at_line = line + (p.standing ? 8 * piece : row);
    const int at_along = along + (p.standing ? row : 8 * piece);
    const int image = p.tile_images == 1 ? 0 : at_line / p.pitch;
    const int image_line = at_line - image * p.pitch;
    const int h = p.standing ? at_along : first_line + image_line;
    const int w = p.standing ? first_line + image_line : at_along;
    // Lines between images are beyond their height or width. Where images are cut, a tile has whole
    // groups.
    if (image >= images || h >= p.height) continue;
    uint4 eight = *reinterpret_cast<const uint4*>(
        out + row * (p.standing ? L::kStandingRow : L::kLyingRow) + 16 * piece);
    if (p.relu) eight = rectified(eight, Half{});
    store(y + image * p.y_stride[0] + h * p.y_stride[2] + w, eight, p.width - w, p.store_bytes);
  }
}

template <class Half, int kAcross, int kColumns, int kReach>
__global__ void __launch_bounds__(kStripThreads, kAcross > 5 ? 3 : 4)
    strip_kernel(const StripPlan<Half> p) {
  using L = Layout<kAcross, kColumns, kReach>;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int part = static_cast<int>(blockIdx.x % p.parts);
  const std::int64_t channel = blockIdx.x / p.parts / (p.along_tiles * p.line_tiles);
  const Half* x = p.x + channel * p.x_stride[1];
  Half* y = p.y + channel * p.y_stride[1];
  const float bias = p.bias ? widened(p.bias[channel]) : 0.0f;

  auto* taps = reinterpret_cast<Half*>(dynamic_shared());
  unsigned char* out = dynamic_shared() + L::kTaps + warp * L::kOut;
  unsigned char* lines = dynamic_shared() + L::kTiles;
  unsigned char* other = lines + p.tile_bytes;  // the next tile; not yet transposed if standing
  // Margins and the lines between images stay zero.
  const int staged_bytes = p.tile_images * p.staged_image_rows * p.staged_row_bytes;
  const int bytes = p.tile_bytes + (p.standing ? staged_bytes : p.tile_bytes);
  for (int i = 16 * static_cast<int>(threadIdx.x); i < bytes; i += 16 * kStripThreads) {
    *reinterpret_cast<uint4*>(lines + i) = make_uint4(0, 0, 0, 0);
  }
  fill_taps<L, kAcross, kReach>(taps, p, channel);
  __syncthreads();
  std::uint32_t band[kAcross][2 * kReach + 1];
  band_of<L, kAcross, kReach>(band, taps, lane);

  const auto present = [&](std::int64_t first) {
    return static_cast<int>(min(p.images - first, static_cast<std::int64_t>(p.tile_images)));
  };
  const auto start = [&](std::int64_t first) {  // starts to load the images from `first` on
    if (first < p.images) {
      const StripCut c = strip_cut<kAcross>(p);
      const int rows = p.standing ? p.staged_image_rows : p.pitch;
      const int row = p.standing ? p.staged_row_bytes : p.row_bytes;
      unsigned char* to =
          p.standing ? other : other + (kAcross / 2 + c.row_begin - c.first_line) * row;
      const Half* from = x + first * p.x_stride[0];
      if (p.load_bytes == 16) {
        strip_bring<16>(to, rows * row, row, p, c, from, present(first));
      } else if (p.load_bytes == 8) {
        strip_bring<8>(to, rows * row, row, p, c, from, present(first));
      } else if (p.load_bytes == 4) {
        strip_bring<4>(to, rows * row, row, p, c, from, present(first));
      } else {
        strip_bring<2>(to, rows * row, row, p, c, from, present(first));
      }
    }
    cp_async_commit();
  };

  const std::int64_t stride = std::int64_t{p.parts} * p.tile_images;
  std::int64_t first = std::int64_t{part} * p.tile_images;
  start(first);
  for (; first < p.images; first += stride) {
    const int images = present(first);
    cp_async_wait<0>();
    __syncthreads();  // the images are loaded, and all warps are done with those before
    if (p.standing) {
      strip_transpose<kAcross>(lines, other, p, strip_cut<kAcross>(p), images);
      __syncthreads();
    } else {
      unsigned char* arrived = other;
      other = lines;
      lines = arrived;
    }
    start(first + stride);

    const StripCut c = strip_cut<kAcross>(p);
    for (int i = warp; i < p.groups * p.spans; i += kStripWarps) {
      const int group = i / p.spans, span = i % p.spans;
      const int line = group / p.groups_per_image * p.pitch + group % p.groups_per_image * 16;
      const int along = c.first_along + 8 * kColumns * span;
      float sum[kColumns][4];
#pragma unroll
      for (auto& tile : sum) tile[0] = tile[1] = tile[2] = tile[3] = bias;
      const unsigned char* at =
          lines + (line + lane % 16) * p.row_bytes + 2 * (along - c.along_begin) + lane / 16 * 16;
      __syncwarp();  // ldmatrix needs all lanes at once, and `out` must have been read
      multiply<kAcross, kColumns, kReach, Half>(
          sum, band, at, p.row_bytes, (c.along_begin - along) / 16, (c.along_end - along) / 16);
      store_sums<L, kColumns>(sum, out, p, c.first_line, y + first * p.y_stride[0], images, line,
                              along);
    }
  }
}

// The compiled kernels, those with less reach first.
template <class Half>
struct Entry {
  int across, columns, reach, fixed_bytes;
  void (*kernel)(StripPlan<Half>);
};

#define CBA_STRIP(across, columns, reach)                          \
  {across, columns, reach, Layout<across, columns, reach>::kTiles, \
   strip_kernel<Half, across, columns, reach>}

template <class Half>
const Entry<Half>* entry(int across, int columns, int reach) {
  static constexpr Entry<Half> kEntries[] = {CBA_STRIP(5, 3, 3), CBA_STRIP(5, 4, 4),
                                             CBA_STRIP(5, 6, 3), CBA_STRIP(5, 6, 4),
                                             CBA_STRIP(7, 4, 4)};
  for (const Entry<Half>& e : kEntries) {
    if (e.across >= across && e.columns == columns && e.reach >= reach) return &e;
  }
  return nullptr;
}
#undef CBA_STRIP

int quotient_up(std::int64_t a, std::int64_t b) { return static_cast<int>((a + b - 1) / b); }

// The largest number of bytes up to 16 that divides the addresses of all rows.
int alignment(const CudaImages& images) {
  const auto any = static_cast<std::uint64_t>(
      2 * (images.stride_n | images.stride_c | images.stride_h) |
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(images.data)));
  return any % 16 == 0 ? 16 : any % 8 == 0 ? 8 : any % 4 == 0 ? 4 : 2;
}

// `across` is the number of taps across that the kernel is compiled for, at least that of p.
template <class Half>
StripPlan<Half> plan(const CudaConvParams& p, const StripTile& tile, int across) {
  StripPlan<Half> q = {};
  q.x = static_cast<const Half*>(p.x.data);
  q.y = static_cast<Half*>(p.y.data);
  q.kernel = static_cast<const Half*>(p.kernel);
  q.bias = static_cast<const Half*>(p.bias);
  const std::int64_t strides[] = {p.x.stride_n, p.x.stride_c, p.x.stride_h,
                                  p.y.stride_n, p.y.stride_c, p.y.stride_h};
  std::copy_n(strides, 3, q.x_stride);
  std::copy_n(strides + 3, 3, q.y_stride);
  q.images = p.images;
  q.height = static_cast<int>(p.height);
  q.width = static_cast<int>(p.width);
  q.standing = p.kernel_height > p.kernel_width;
  q.turned = p.turned;
  q.relu = p.relu;
  const int length = q.standing ? q.height : q.width, lines = q.standing ? q.width : q.height;
  const int taps = std::max(p.kernel_height, p.kernel_width);
  q.taps = static_cast<int>(std::min<std::int64_t>(taps, 2 * std::int64_t{length} - 1));
  q.first_tap = (taps - q.taps) / 2;  // taps that meet only padding are left out
  q.tap_step = q.standing ? p.kernel_width : 1;
  q.lines = std::min(p.kernel_height, p.kernel_width);
  q.line_step = q.standing ? 1 : p.kernel_width;
  q.kernel_size = p.kernel_height * p.kernel_width;

  q.spans = tile.spans;
  q.tile_along = 8 * tile.columns * tile.spans;
  q.tile_lines = std::min(tile.lines, lines);
  q.tile_images = tile.images;
  q.along_tiles = quotient_up(length, q.tile_along);
  q.line_tiles = quotient_up(lines, q.tile_lines);
  q.parts = tile.parts;
  // Lines of zeros lie between images. For standing strips 8 lines are stored together.
  q.pitch = q.tile_lines + across / 2;
  if (q.standing) q.pitch = (q.pitch + 7) / 8 * 8;
  q.groups_per_image = quotient_up(q.tile_lines, 16);
  q.groups = tile.images * q.groups_per_image;
  const int straddling = quotient_up((tile.images - 1) * q.pitch + q.tile_lines, 16);
  if (straddling < q.groups) q.groups = q.groups_per_image = straddling;
  const int last =
      (q.groups - 1) / q.groups_per_image * q.pitch + (q.groups - 1) % q.groups_per_image * 16;

  const int along = std::min(q.tile_along + 2 * kStripMargin, (length + 15) / 16 * 16);
  q.row_bytes = strip_row_bytes(along);
  const std::int64_t rows = std::max(last + 16, tile.images * q.pitch) + across - 1;
  q.tile_bytes = static_cast<int>(std::min<std::int64_t>(rows * q.row_bytes, INT32_MAX));
  // The columns of a staged image begin at a multiple of 8.
  const int staged_columns = std::min(q.tile_lines + 8 + across / 2, lines);
  q.staged_row_bytes = strip_row_bytes(staged_columns);
  q.staged_image_rows = along;
  q.load_bytes = alignment(p.x);
  q.store_bytes = alignment(p.y);
  const int columns = q.standing ? staged_columns : along;
  for (q.row_threads = 1;
       q.row_threads < kStripThreads && q.row_threads * q.load_bytes < 2 * columns;) {
    q.row_threads *= 2;
  }
  return q;
}

template <class Half>
std::size_t shared_bytes(const StripPlan<Half>& q, const Entry<Half>& e) {
  const std::size_t staged =
      std::size_t{1} * q.tile_images * q.staged_image_rows * q.staged_row_bytes;
  return e.fixed_bytes + std::size_t{1} * q.tile_bytes + (q.standing ? staged : q.tile_bytes);
}

template <class Half>
const Entry<Half>* entry(const CudaConvParams& p, const StripTile& tile) {
  const std::int64_t length = p.kernel_height > p.kernel_width ? p.height : p.width;
  const std::int64_t margin =
      std::min<std::int64_t>(std::max(p.kernel_height, p.kernel_width) / 2, length - 1);
  return entry<Half>(std::min(p.kernel_height, p.kernel_width), tile.columns,
                     static_cast<int>(margin + 7) / 8);
}

template <class Half>
cudaError_t launch_as(const CudaConvParams& p, const StripTile& tile) {
  const Entry<Half>* e = entry<Half>(p, tile);
  const StripPlan<Half> q = plan<Half>(p, tile, e->across);
  const auto blocks = static_cast<unsigned>(p.channels * q.along_tiles * q.line_tiles * q.parts);
  return launch({blocks, kStripThreads, shared_bytes(q, *e), p.stream}, e->kernel, q);
}

}  // namespace

bool strip_can_run(const CudaConvParams& p, const StripTile& tile) {
  const bool standing = p.kernel_height > p.kernel_width;
  const std::int64_t lines = standing ? p.width : p.height;
  if (p.type != DType::kBfloat16 && p.type != DType::kFloat16) return false;
  if (std::min(p.kernel_height, p.kernel_width) > 7) return false;
  if (p.images * p.channels == 0) return true;
  constexpr int kMost = 1 << 12;  // larger sizes never fit; this prevents overflows
  for (const int size : {tile.columns, tile.spans, tile.lines, tile.images, tile.parts}) {
    if (size < 1) return false;
  }
  if (tile.columns > 8 || tile.spans > kMost || tile.images > kMost) return false;
  if (std::min<std::int64_t>(tile.lines, lines) > kMost) return false;
  const Entry<__half>* e = entry<__half>(p, tile);
  if (e == nullptr) return false;
  const StripPlan<__half> q = plan<__half>(p, tile, e->across);
  // Cuts must be at multiples of 16 along the strip and of 8 across it.
  if (q.along_tiles * q.spans > 1 && tile.columns % 2) return false;
  if (q.line_tiles > 1 && (tile.lines % 16 || tile.images > 1)) return false;
  const std::int64_t tiles = std::int64_t{q.along_tiles} * q.line_tiles;
  return shared_bytes(q, *e) <= kMostDynamicShared && tiles <= INT32_MAX / p.channels / tile.parts;
}

cudaError_t dwconv_strip_cuda(const CudaConvParams& p, const StripTile& tile) {
  return launch_halves(p, [&](auto half) { return launch_as<decltype(half)>(p, tile); });
}

}  // namespace cba
