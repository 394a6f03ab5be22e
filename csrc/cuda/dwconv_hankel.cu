#include "cuda/dwconv_hankel_rows.h"
#include "cuda/floating.h"

namespace cba {
namespace {

// The arguments of the kernel. Sizes are in elements; `taps` are those that can meet the image.
template <class Half>
struct Plan {
  const Half* x;
  Half* y;
  const Half* kernel;
  const Half* bias;
  std::int64_t x_stride[3], y_stride[3], images;
  int height, width, kernel_height, kernel_width;
  HankelTaps taps;
  int steps;  // steps of 16 columns of taps
  int column_tiles, bands, band_rows;
  std::int64_t units;  // units of work of a channel, one for each warp
  unsigned blocks;     // blocks of a channel
  int weight_stride, weight_bytes, copy_words, staged_bytes, image_bytes, warp_bytes;
  bool turned, relu;
  int together;  // outputs that are stored at once: 8, 2 or 1
};

// Writes the channel's taps to shared memory, in rows of 16 * steps, and a last row of zeros.
template <class Half>
__device__ void fill_weights(Half* weights, const Plan<Half>& p, std::int64_t channel) {
  const Half* from = p.kernel + channel * p.kernel_height * p.kernel_width;
  const int taps = p.kernel_height * p.kernel_width;
  const int count = (p.taps.rows + 1) * p.weight_stride;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int r = i / p.weight_stride, s = i % p.weight_stride;
    const int tap = (r + p.taps.first_row) * p.kernel_width + s + p.taps.first_column;
    const bool used = r < p.taps.rows && s < p.taps.columns;
    if (used) {
      weights[i] = from[p.turned ? taps - 1 - tap : tap];
    } else {
      store_one(weights + i, 0.0f);
    }
  }
}

// The bytes of two complete rows of `columns` * 8 elements of an image.
__host__ __device__ constexpr int finished_bytes(int columns, int images) {
  return hankel_image_bytes(32 * columns, images);
}

// Rounds a lane's sums of one output row, moves them to shared memory, with kImage elements from
// one image to the next, and begins another row. `half` tells in which half of the tile the row is.
template <int kJ, int kImage, class Half, int kTiles>
__device__ __forceinline__ void take_row(float (&sum)[kTiles][4], int half, Half* to, float bias) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    store_pair(to + i / kJ * kImage + i % kJ * 8, sum[i][2 * half], sum[i][2 * half + 1]);
    sum[i][2 * half] = sum[i][2 * half + 1] = bias;
  }
}

// Stores the first `count` elements of a row of kWords pairs.
template <int kWords, int kLanes, class Half>
__device__ __forceinline__ void store_row(Half* to, const std::uint32_t* pairs, int count,
                                          bool paired, bool relu, int lane) {
  auto* halves = reinterpret_cast<std::uint16_t*>(to);
#pragma unroll 1
  for (int i = lane; i < kWords; i += kLanes) {
    const std::uint32_t pair = relu ? rectified(pairs[i], Half{}) : pairs[i];
    if (paired && 2 * i + 1 < count) {
      *reinterpret_cast<std::uint32_t*>(halves + 2 * i) = pair;
    } else {
      if (2 * i < count) halves[2 * i] = static_cast<std::uint16_t>(pair);
      if (2 * i + 1 < count) halves[2 * i + 1] = static_cast<std::uint16_t>(pair >> 16);
    }
  }
}

// The least number of blocks that a multiprocessor holds. With three, a thread has 168 registers;
// on sm_100 the compiler would have to spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocks = 2;
#else
constexpr int kBlocks = 3;
#endif

template <class Half, int kM, int kJ, int kI, int kSteps>
__global__ void __launch_bounds__(32 * kHankelWarps, kBlocks) hankel_kernel(const Plan<Half> p) {
  constexpr int kSlots = 16 * kM, kLanes = 32 / kI;  // lanes that load the rows of an image
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t channel = blockIdx.x / p.blocks;
  auto* weights = reinterpret_cast<Half*>(dynamic_shared());
  fill_weights(weights, p, channel);
  __syncthreads();
  const std::int64_t unit = std::int64_t{blockIdx.x % p.blocks} * (blockDim.x / 32) + warp;
  if (unit >= p.units) return;

  // This warp's part of the output: kI images, rows [first, end), 8 * kJ columns.
  const int cut = static_cast<int>(unit % (p.column_tiles * p.bands));
  const int first = cut / p.column_tiles * p.band_rows, end = min(first + p.band_rows, p.height);
  const int column = cut % p.column_tiles * 8 * kJ;
  const float bias = p.bias ? widened(p.bias[channel]) : 0.0f;
  const int steps = kSteps ? kSteps : p.steps;
  const int margin = p.taps.rows / 2;  // rows of padding
  const int end_row = min(end + margin, p.height);

  // This lane loads and stores rows of one image, or none if the image is beyond the batch.
  const int mine = lane % kI, place = lane / kI;
  const std::int64_t image = unit / (p.column_tiles * p.bands) * kI + mine;
  const bool present = image < p.images;
  const Half* x = p.x + image * p.x_stride[0] + channel * p.x_stride[1];
  constexpr int kFinished = finished_bytes(kJ, kI);
  static_assert(2 * kJ <= kLanes, "a lane stores 8 elements of one of two rows");
  const int own_row = place / kJ, own_column = place % kJ * 8;
  // Where this lane stores 8 elements of one of two rows, if it does: the place in row 0.
  Half* y = p.y + image * p.y_stride[0] + channel * p.y_stride[1] + own_row * p.y_stride[2] +
            column + own_column;
  const HankelWindow window = {column - p.taps.columns / 2, 8 * kJ + 16 * steps,
                               present ? p.width : 0};

  const auto keep = [](int value) { return kSteps ? kept(value) : value; };
  unsigned char* own = dynamic_shared() + p.weight_bytes + warp * p.warp_bytes;
  auto* laid = reinterpret_cast<std::uint32_t*>(own + kHankelStages * p.staged_bytes);
  auto* finished = reinterpret_cast<std::uint32_t*>(own + kI * p.image_bytes);
  const int image_words = p.image_bytes / 4;
  const int x_place = keep(static_cast<int>(laid + mine * image_words -
                                            reinterpret_cast<std::uint32_t*>(dynamic_shared())));
  auto* x_row = reinterpret_cast<std::uint32_t*>(dynamic_shared()) + x_place;
  const int fragment = keep(static_cast<int>(hankel_fragments(laid, p.copy_words, lane) -
                                             reinterpret_cast<std::uint32_t*>(dynamic_shared())));
  const auto* fragments = reinterpret_cast<std::uint32_t*>(dynamic_shared()) + fragment;
  const int first_staged = keep(p.weight_bytes + warp * p.warp_bytes + mine * p.image_bytes);
  const auto staged = [&](int row) {
    return dynamic_shared() + first_staged + row % kHankelStages * p.staged_bytes;
  };
  int row = max(first - margin, 0);
  HankelPieces pieces(x + row * p.x_stride[2], window, place, kLanes);  // of the next row to stage
  const std::int64_t x_step = 2 * p.x_stride[2];
  unsigned phase = pieces.phase();  // of this row
  // With two tiles of slots, several images have no registers left for the masks of all their
  // words.
  constexpr int kUnrolled = kI > 1 && kM > 1 ? 1 : kSteps ? 8 : 2;
  constexpr int kTurns = kSteps ? (kJ + 2 * kSteps + kLanes) / kLanes : 0;
  const auto stage = [&](int row) {
    if (row < end_row && present) hankel_stage<kTurns>(staged(row), pieces);
    pieces.from += x_step;
    cp_async_commit();
  };

  // Rows take slots in turn, unless each row has its own. Kernels have an odd number of rows and
  // slots are even, so that a row can wait in its slot for the next one.
  const bool in_turn = end - first > kSlots;
  float sum[kM][kI * kJ][4];
  for (auto& tiles : sum) {
    for (auto& tile : tiles) tile[0] = tile[1] = tile[2] = tile[3] = bias;
  }
  const int tap_column = keep(lane / 16 * 8);
  int slot_row[kM];  // the output row in the slot whose kernel row this lane loads
#pragma unroll
  for (int m = 0; m < kM; ++m) slot_row[m] = first + 16 * m + lane % 16;
  int oldest = first, oldest_slot = 0;

  const bool stores = own_row < 2 && own_column < window.width - column;
  for (int s = 0; s < kHankelStages - 1; ++s) stage(row + s);
  for (; row < end_row; ++row) {
    cp_async_wait<kHankelStages - 2>();
    __syncwarp();  // the row is loaded, and all lanes are done with the one before
    stage(row + kHankelStages - 1);
    hankel_lay_out<true, kUnrolled>(staged(row), phase, window, x_row, p.copy_words, place, kLanes);
    phase += static_cast<unsigned>(x_step);
    __syncwarp();

    const Half* taps[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int r = row - slot_row[m] + margin;
      const bool used = static_cast<unsigned>(r) < static_cast<unsigned>(p.taps.rows);
      taps[m] = weights + (used ? r : p.taps.rows) * p.weight_stride + tap_column;
    }
    if constexpr (kSteps > 0) {
      // Along the diagonals of the Hankel matrix, so that each pair of registers is made once.
      std::uint32_t a[kSteps][kM][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int m = 0; m < kM; ++m) ldmatrix_x4(a[step][m], taps[m] + 16 * step);
      }
#pragma unroll
      for (int i = 0; i < kI; ++i) {
        const std::uint32_t* words = fragments + i * image_words;
        std::uint32_t b = words[0];
#pragma unroll
        for (int n = 0; n < kJ + 2 * kSteps - 2; ++n) {
          const std::uint32_t next = words[4 * (n + 1)];
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            const int j = n - 2 * step;
            if (j < 0 || j >= kJ) continue;
#pragma unroll
            for (int m = 0; m < kM; ++m) {
              mma_m16n8k16(sum[m][i * kJ + j], a[step][m], b, next, Half{});
            }
          }
          b = next;
        }
      }
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        std::uint32_t a[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) ldmatrix_x4(a[m], taps[m] + 16 * step);
#pragma unroll
        for (int i = 0; i < kI; ++i) {
          std::uint32_t b[kJ + 1];
          hankel_load(b, fragments + i * image_words, 2 * step, false);
#pragma unroll
          for (int j = 0; j < kJ; ++j) {  // all slots in turn, so that b is paired once
#pragma unroll
            for (int m = 0; m < kM; ++m) {
              mma_m16n8k16(sum[m][i * kJ + j], a[m], b[j], b[j + 1], Half{});
            }
          }
        }
      }
    }

    // Output rows that have met their last input row are stored two by two, and their slots take
    // other rows.
    const int complete = row + 1 == end_row ? end + 1 : in_turn ? row - margin + 1 : 0;
    for (; oldest + 1 < complete; oldest += 2) {
      __syncwarp();  // `finished` has been read
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (oldest_slot / 2 != 8 * m + 4 * half + lane / 8) continue;
          take_row<kJ, kFinished / 2>(
              sum[m], half,
              reinterpret_cast<Half*>(finished) + lane / 4 % 2 * 8 * kJ + 2 * (lane % 4), bias);
        }
        if (static_cast<unsigned>(slot_row[m] - oldest) < 2) slot_row[m] += kSlots;
      }
      oldest_slot = oldest_slot + 2 == kSlots ? 0 : oldest_slot + 2;
      __syncwarp();
      Half* to = y + oldest * p.y_stride[2];
      if (p.together == 8) {
        if (stores && oldest + own_row < end) {
          const uint4 eight =
              reinterpret_cast<const uint4*>(finished)[kFinished / 16 * mine + place];
          *reinterpret_cast<uint4*>(to) = p.relu ? rectified(eight, Half{}) : eight;
        }
        continue;
      }
      to -= own_row * p.y_stride[2] + own_column;
      for (int i = 0; i < 2 && oldest + i < end; ++i) {
        store_row<4 * kJ, kLanes>(to + i * p.y_stride[2],
                                  finished + kFinished / 4 * mine + 4 * kJ * i,
                                  window.width - column, p.together == 2, p.relu, place);
      }
    }
  }
}

// The compiled kernels. One with 0 steps takes any number of them.
template <class Half>
struct Entry {
  int slots, columns, images, steps;
  void (*kernel)(Plan<Half>);
};

#define CBA_HANKEL(slots, columns, images, steps) \
  {slots, columns, images, steps, hankel_kernel<Half, slots, columns, images, steps>}

template <class Half>
const Entry<Half>* entry(const HankelTile& tile, int steps) {
  static constexpr Entry<Half> kEntries[] = {
      CBA_HANKEL(1, 2, 8, 1),  CBA_HANKEL(2, 3, 4, 2), CBA_HANKEL(2, 6, 2, 2),
      CBA_HANKEL(2, 12, 1, 2), CBA_HANKEL(1, 6, 2, 4), CBA_HANKEL(1, 12, 1, 4),
      CBA_HANKEL(1, 2, 8, 0),  CBA_HANKEL(1, 3, 4, 0), CBA_HANKEL(1, 6, 2, 0),
      CBA_HANKEL(1, 12, 1, 0), CBA_HANKEL(2, 3, 4, 0), CBA_HANKEL(2, 6, 2, 0),
      CBA_HANKEL(2, 12, 1, 0), CBA_HANKEL(3, 3, 2, 0), CBA_HANKEL(3, 6, 1, 0),
      CBA_HANKEL(4, 3, 2, 0),  CBA_HANKEL(4, 6, 1, 0)};
  for (const Entry<Half>& e : kEntries) {
    if (e.slots == tile.slots && e.columns == tile.columns && e.images == tile.images &&
        (e.steps == 0 || e.steps == steps)) {
      return &e;
    }
  }
  return nullptr;
}
#undef CBA_HANKEL

template <class Half>
Plan<Half> plan(const CudaConvParams& p, const HankelTile& tile) {
  Plan<Half> q = {};
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
  q.kernel_height = p.kernel_height;
  q.kernel_width = p.kernel_width;
  q.taps = hankel_taps(p.kernel_height, p.kernel_width, p.height, p.width);
  q.steps = static_cast<int>(quotient_up(q.taps.columns, 16));
  q.column_tiles = static_cast<int>(quotient_up(p.width, 8 * tile.columns));
  q.band_rows = static_cast<int>(quotient_up(p.height, tile.bands));
  q.bands = static_cast<int>(quotient_up(p.height, q.band_rows));
  q.units = quotient_up(p.images, tile.images) * q.column_tiles * q.bands;
  q.blocks =
      static_cast<unsigned>(quotient_up(q.units, std::min<std::int64_t>(q.units, kHankelWarps)));
  const int window = 8 * tile.columns + 16 * q.steps;
  q.weight_stride = 16 * q.steps + 8;  // rows are 16 bytes apart in the banks, without conflicts
  q.weight_bytes = 2 * (q.taps.rows + 1) * q.weight_stride;
  q.copy_words = hankel_copy_words(window);
  q.staged_bytes = hankel_staged_bytes(window);
  q.image_bytes =
      hankel_image_bytes(kHankelStages * q.staged_bytes + 8 * q.copy_words, tile.images);
  q.warp_bytes = tile.images * (q.image_bytes + finished_bytes(tile.columns, tile.images));
  q.turned = p.turned;
  q.relu = p.relu;
  const std::int64_t places =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(p.y.data) / 2) | p.y.stride_n |
      p.y.stride_c | p.y.stride_h;
  q.together = (places | p.width) % 8 == 0 ? 8 : places % 2 == 0 ? 2 : 1;
  return q;
}

template <class Half>
cudaError_t launch_as(const CudaConvParams& p, const HankelTile& tile) {
  const Plan<Half> q = plan<Half>(p, tile);
  const auto warps = static_cast<unsigned>(std::min<std::int64_t>(q.units, kHankelWarps));
  const Launch where = {static_cast<unsigned>(p.channels * q.blocks), 32 * warps,
                        q.weight_bytes + std::size_t{warps} * q.warp_bytes, p.stream};
  return launch(where, entry<Half>(tile, q.steps)->kernel, q);
}

}  // namespace

bool hankel_can_run(const CudaConvParams& p, const HankelTile& tile) {
  if (p.type != DType::kBfloat16 && p.type != DType::kFloat16) return false;
  if (tile.bands < 1) return false;
  if (p.images * p.channels == 0) return true;
  const Plan<__half> q = plan<__half>(p, tile);
  return entry<__half>(tile, q.steps) != nullptr &&
         16 * tile.slots >= std::min(q.taps.rows, q.band_rows) &&
         q.units <= INT32_MAX / p.channels;  // a block has at least one warp
}

cudaError_t dwconv_hankel_cuda(const CudaConvParams& p, const HankelTile& tile) {
  return launch_halves(p, [&](auto half) { return launch_as<decltype(half)>(p, tile); });
}

}  // namespace cba
