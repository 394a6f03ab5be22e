// The box sweep on a GPU. A block has one level of one map: it makes the mask u > L, cuts its rows
// into runs, and joins runs by a union-find in shared memory. cpu/level_sets.cpp has the rules for
// areas and ties.
//
// A row's runs alternate between foreground and background. The nodes of the union-find are those
// from the first foreground run of a row to its last, in raster order, so that every second one is
// background. What lies left and right of them, and rows without foreground, is the outside, node
// 0. Foreground is joined 8-connected, background 4-connected. Background that is not joined with
// the outside is a hole. The root of a component is its smallest node, which holds its first pixel.
//
// For the largest contour holes are filled: they are joined with the runs around them, and their
// bits are set. A 2x2 quad with three or four pixels then belongs to the run of its lower left
// pixel, or lower right one if only that is filled.
#include "cuda/box_sweep.h"

#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace cba {
namespace {

constexpr int kThreads = 256;
constexpr int kArrays = 5;  // words of a node

// What the threads of a block share, before the arrays.
struct Board {
  unsigned long long best;  // area and root, or the bits of the IoU
  int count;
};

struct Mask {
  int height, width, words;  // words of a row; bits beyond the width are zero
};

// The shared memory of a block.
struct Memory {
  Board* board;
  unsigned* mask;  // [height, words]
  int* begin;      // [height + 1]: nodes of row y are begin[y] .. begin[y + 1]
  // [nodes] Of a run first, and later of a root's component: columns, last row, twice the area.
  int *parent, *x0, *x1, *y1, *area;

  __device__ Memory(const Mask& m, int nodes)
      : board(reinterpret_cast<Board*>(dynamic_shared())),
        mask(reinterpret_cast<unsigned*>(board + 1)),
        begin(reinterpret_cast<int*>(mask + m.height * m.words)),
        parent(begin + m.height + 1),
        x0(parent + nodes),
        x1(x0 + nodes),
        y1(x1 + nodes),
        area(y1 + nodes) {}

  static std::int64_t bytes(std::int64_t height, std::int64_t width, std::int64_t nodes) {
    const std::int64_t words = (width + 31) / 32;
    return static_cast<std::int64_t>(sizeof(Board)) +
           4 * (height * words + height + 1 + kArrays * nodes);
  }
};

__device__ int find(int* parent, int node) {
  int up = load_relaxed(parent + node);
  while (up != node) {
    const int above = load_relaxed(parent + up);
    if (above != up) store_relaxed(parent + node, above);  // the next one has half the way
    node = up;
    up = above;
  }
  return node;
}

// The larger root becomes a child of the smaller one. If it is no root any more, its parent and the
// smaller root remain to be joined.
__device__ void unite(int* parent, int a, int b) {
  while ((a = find(parent, a)) != (b = find(parent, b))) {
    const int larger = max(a, b);
    b = min(a, b);
    a = atomicMin(parent + larger, b);
    if (a == larger) return;
  }
}

// Makes roots the parents of all nodes, after all threads have joined theirs. Then only its own
// thread changes the parent of a node.
__device__ void flatten(int* parent, int end) {
  __syncthreads();  // orders atomics, which never race
  for (int node = threadIdx.x; node < end; node += kThreads) {
    int up = load_relaxed(parent + node);
    for (int above; (above = load_relaxed(parent + up)) != up; up = above) {
      store_relaxed(parent + node, above);
    }
  }
  __syncthreads();
}

__device__ void make_mask(const std::uint8_t* __restrict__ map, int level, const Mask& m,
                          unsigned* mask) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = threadIdx.x / 32; i < m.height * m.words; i += kThreads / 32) {
    const int y = i / m.words, x = i % m.words * 32 + lane;
    const unsigned bits =
        __ballot_sync(~0u, x < m.width && map[std::int64_t{y} * m.width + x] > level);
    if (lane == 0) mask[i] = bits;
  }
}

// Bits where a pixel differs from the one left of it; `left` is the word's left neighbor.
__device__ unsigned edges_of(unsigned word, unsigned left) {
  return word ^ (word << 1 | left >> 31);
}

// Numbers the nodes of all rows from 1 on.
__device__ void number_nodes(const Memory& at, const Mask& m) {
  for (int y = threadIdx.x; y < m.height; y += kThreads) {
    int runs = 0;
    unsigned left = 0;
    for (int k = 0; k < m.words; ++k) {
      const unsigned word = at.mask[y * m.words + k];
      runs += __popc(word & edges_of(word, left));
      left = word;
    }
    at.begin[y + 1] = max(2 * runs - 1, 0);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 1;
    for (int y = threadIdx.x; y - static_cast<int>(threadIdx.x) < m.height; y += 32) {
      int sum = y < m.height ? at.begin[y + 1] : 0;
      for (int by = 1; by < 32; by *= 2) {
        const int other = __shfl_up_sync(~0u, sum, by);
        if (static_cast<int>(threadIdx.x) >= by) sum += other;
      }
      if (y < m.height) at.begin[y + 1] = before + sum;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (threadIdx.x == 0) at.begin[0] = 1;
  }
  __syncthreads();
}

__device__ void make_nodes(const Memory& at, const Mask& m) {
  if (threadIdx.x == 0) at.parent[0] = 0;
  for (int y = threadIdx.x; y < m.height; y += kThreads) {
    const int first = at.begin[y], end = at.begin[y + 1];
    int node = first;
    unsigned left = 0;
    for (int k = 0; k < m.words; ++k) {
      const unsigned word = at.mask[y * m.words + k];
      for (unsigned edges = edges_of(word, left); edges != 0; edges &= edges - 1, ++node) {
        const int x = k * 32 + __ffs(static_cast<int>(edges)) - 1;
        if (node > first) at.x1[node - 1] = x - 1;
        if (node == end) break;
        at.parent[node] = node;
        at.x0[node] = x;
        at.x1[node] = m.width - 1;  // of a last run that ends there
        at.y1[node] = y;
        at.area[node] = 0;
      }
      left = word;
    }
  }
}

// The nodes of a row.
struct Row {
  int begin, end;
};

// Joins the runs of two rows that touch: foreground (kind 0), also at corners, or background (1).
__device__ void join_rows(const Memory& at, const Row& lower, const Row& upper, int kind) {
  const int reach = 1 - kind;
  int next = upper.begin + kind;
  for (int i = lower.begin + kind; i < lower.end; i += 2) {
    while (next < upper.end && at.x1[next] + reach < at.x0[i]) next += 2;
    for (int j = next; j < upper.end && at.x0[j] <= at.x1[i] + reach; j += 2) {
      unite(at.parent, i, j);
    }
  }
}

// Joins the background of a row with the outside where that touches it in a neighboring row.
__device__ void let_out(const Memory& at, const Row& row, const Row& neighbor) {
  for (int i = row.begin + 1; i < row.end; i += 2) {
    if (neighbor.begin == neighbor.end || at.x0[i] < at.x0[neighbor.begin] ||
        at.x1[i] > at.x1[neighbor.end - 1]) {
      unite(at.parent, i, 0);
    }
  }
}

__device__ void join_all(const Memory& at, const Mask& m) {
  for (int y = threadIdx.x; y <= m.height; y += kThreads) {
    const Row lower = {at.begin[y], at.begin[min(y + 1, m.height)]};
    const Row upper = {at.begin[max(y - 1, 0)], at.begin[y]};
    join_rows(at, lower, upper, 0);
    join_rows(at, lower, upper, 1);
    let_out(at, lower, upper);
    let_out(at, upper, lower);
  }
  flatten(at.parent, at.begin[m.height]);
}

// The bits of the columns x0 .. x1 in word k of a row.
__device__ unsigned bits_between(int x0, int x1, int k) {
  const unsigned from = ~0u << max(x0 - 32 * k, 0);
  return from & ~0u >> max(31 - (x1 - 32 * k), 0);
}

__device__ void fill_holes(const Memory& at, const Mask& m) {
  const int end = at.begin[m.height];
  for (int i = 1 + threadIdx.x; i < end; i += kThreads) {
    const int y = at.y1[i], x0 = at.x0[i], x1 = at.x1[i];
    if ((i - at.begin[y]) % 2 == 0 || load_relaxed(at.parent + i) == 0) continue;
    unite(at.parent, i, i - 1);
    unite(at.parent, i, i + 1);
    for (int k = x0 / 32; k <= x1 / 32; ++k) {
      atomicAdd(at.mask + y * m.words + k, bits_between(x0, x1, k));  // no two runs share a bit
    }
  }
  flatten(at.parent, end);
}

__device__ bool has(const unsigned* row, int x) { return row[x / 32] >> x % 32 & 1; }

// Adds to each component twice the area of its 2x2 quads: 1 for three pixels, 2 for four.
__device__ void measure(const Memory& at, const Mask& m) {
  const int end = at.begin[m.height];
  for (int i = 1 + threadIdx.x; i < end; i += kThreads) {
    const int y = at.y1[i], x0 = at.x0[i], x1 = at.x1[i];
    if (y == 0 || at.parent[i] == 0) continue;
    const unsigned* lower = at.mask + y * m.words;
    const unsigned* upper = lower - m.words;
    int area = x0 > 0 && !has(lower, x0 - 1) && has(upper, x0 - 1) && has(upper, x0);
    for (int k = x0 / 32; k <= x1 / 32; ++k) {
      const bool last = k + 1 == m.words;
      const unsigned a = upper[k], a1 = __funnelshift_r(a, last ? 0 : upper[k + 1], 1);
      const unsigned b = lower[k], b1 = __funnelshift_r(b, last ? 0 : lower[k + 1], 1);
      const unsigned run = bits_between(x0, x1, k);
      area += __popc(((a & a1 & (b | b1)) | (b & b1 & (a | a1))) & run) +
              __popc(a & a1 & b & b1 & run);
    }
    if (area != 0) atomicAdd(at.area + at.parent[i], area);
  }
  __syncthreads();
}

__device__ void find_boxes(const Memory& at, int end) {
  for (int i = 1 + threadIdx.x; i < end; i += kThreads) {
    const int root = at.parent[i];
    if (root == i || root == 0) continue;
    atomicMin(at.x0 + root, at.x0[i]);
    atomicMax(at.x1 + root, at.x1[i]);
    atomicMax(at.y1 + root, at.y1[i]);
  }
  __syncthreads();
}

struct Box {
  int x0, y0, x1, y1;
};

// The box of the component of `root`, as the official evaluator cuts it at the map's end; that of a
// hole is larger by a pixel on each side.
__device__ Box box_of(const Memory& at, const Mask& m, int root) {
  int y = 0;  // the root's row, the last one that does not begin after it
  for (int end = m.height; end - y > 1;) {
    const int middle = (y + end) / 2;
    (at.begin[middle] <= root ? y : end) = middle;
  }
  const int by = (root - at.begin[y]) % 2;
  return {at.x0[root] - by, y - by, min(at.x1[root] + by + 1, m.width - 1),
          min(at.y1[root] + by + 1, m.height - 1)};
}

// The best IoU of a box with true ones of the map, whose numbers are below 2^31.
__device__ double best_iou(const CudaSweepParams& p, int map, const Box& a) {
  double best = 0;
  for (std::int64_t i = p.offsets[map]; i < p.offsets[map + 1]; ++i) {
    const std::int64_t* b = p.truth + 4 * i;
    const int width = min(a.x1, static_cast<int>(b[2])) - max(a.x0, static_cast<int>(b[0])) + 1;
    const int height = min(a.y1, static_cast<int>(b[3])) - max(a.y0, static_cast<int>(b[1])) + 1;
    const int both = max(width, 0) * max(height, 0);
    const std::int64_t others =
        (a.x1 - a.x0 + 1) * (a.y1 - a.y0 + 1) - both + (b[2] - b[0] + 1) * (b[3] - b[1] + 1);
    best = max(best, __ddiv_rn(both, static_cast<double>(others)));
  }
  return best;
}

template <bool kAll>
__global__ void __launch_bounds__(kThreads, 4) sweep_kernel(CudaSweepParams p, Mask m) {
  const int pair = static_cast<int>(p.pairs[blockIdx.x]), map = pair / kSweepLevels;
  const Memory at(m, p.nodes);
  if (threadIdx.x == 0) *at.board = {0, 0};
  make_mask(p.maps + std::int64_t{map} * m.height * m.width, pair % kSweepLevels, m, at.mask);
  __syncthreads();
  number_nodes(at, m);
  const int end = at.begin[m.height];
  if (end > p.nodes) return;
  make_nodes(at, m);
  __syncthreads();
  join_all(at, m);
  if constexpr (!kAll) {
    fill_holes(at, m);
    measure(at, m);
  }
  find_boxes(at, end);
  const auto take = [&](const Box& box) {
    if constexpr (kAll) {
      const int place = atomicAdd(&at.board->count, 1);
      if (p.boxes) reinterpret_cast<Box*>(p.boxes)[p.starts[pair] + place] = box;
      if (p.iou) {
        atomicMax(&at.board->best, static_cast<unsigned long long>(
                                       __double_as_longlong(best_iou(p, map, box))));
      }
    } else {
      if (p.boxes) reinterpret_cast<Box*>(p.boxes)[pair] = box;
      if (p.iou) p.iou[pair] = best_iou(p, map, box);
    }
  };
  for (int i = 1 + threadIdx.x; i < end; i += kThreads) {
    if (at.parent[i] != i) continue;
    if constexpr (kAll) {
      take(box_of(at, m, i));
    } else {
      const auto area = static_cast<unsigned long long>(at.area[i]);
      atomicMax(&at.board->best, area << 32 | static_cast<unsigned>(i));
    }
  }
  if (kAll && end == 1 && threadIdx.x == 0) take({0, 0, 0, 0});
  __syncthreads();
  if (threadIdx.x != 0) return;
  if constexpr (kAll) {
    if (p.counts) p.counts[pair] = at.board->count;
    if (p.iou) p.iou[pair] = __longlong_as_double(static_cast<long long>(at.board->best));
  } else {
    const int root = static_cast<int>(at.board->best & 0xffffffff);
    take(end == 1 ? Box{0, 0, 0, 0} : box_of(at, m, root));
  }
  p.done[pair] = 1;
}

}  // namespace

std::int64_t box_sweep_cuda_nodes(std::int64_t height, std::int64_t width) {
  const auto most = static_cast<std::int64_t>(kMostDynamicShared);
  return (most - Memory::bytes(height, width, 0)) / (4 * kArrays);
}

cudaError_t box_sweep_cuda(const CudaSweepParams& params) {
  if (params.num_pairs == 0) return cudaSuccess;
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const auto height = static_cast<int>(params.height), width = static_cast<int>(params.width);
  const auto shared =
      static_cast<std::size_t>(Memory::bytes(params.height, params.width, params.nodes));
  const Launch where = {static_cast<unsigned>(params.num_pairs), kThreads, shared, params.stream};
  const auto kernel = params.all_contours ? sweep_kernel<true> : sweep_kernel<false>;
  return launch(where, kernel, params, Mask{height, width, (width + 31) / 32});
}

}  // namespace cba
