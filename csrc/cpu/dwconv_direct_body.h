// The product of planes tap by tap, one channel per lane. It serves small maps and strips, for
// which a transform has more padding than data, and callers who want a NaN to reach only the pixels
// under the kernel.
//
//   out[i][j] = sum over h, w of A[h][w] * B[h - i + rh][w - j + rw]
//
// forward and grad_x: A = image, B = kernel (turned for grad_x), out = image. grad_weight: A =
// grad, B = x, out = kernel turned by 180 degrees, because h - i + rh = h + i' - rh with i' = 2 rh
// - i. A tile of Rows x Columns of out is kept in registers. For row h of A and column d of B it
// loads Columns elements of A and Rows elements of B for Rows * Columns products: 7 loads for 12.
// Padding is not multiplied: at the edges some rows and columns of the tile are left out.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dwconv_io_body.h"

namespace cba {
namespace {

struct Block {
  float* data;
  int height, width;
  int64_t row;  // floats from one row to the next

  int64_t floats() const { return height * row; }
  float* at(int h, int w) const { return data + h * row + int64_t(w) * kLanes; }
};

struct Product {
  Block a, b, out;
  int rh, rw;
};

// A tile has at most 4 rows, and as many columns as registers hold: 12 of 16 registers are sums, 3
// hold elements of A and one an element of B; 24 of 32 are sums. More than 12 sums in a row are no
// faster.
constexpr int kMostRows = 4;
#ifdef CBA_THIN  // fewer sizes of the same code, for builds with sanitizers
constexpr int kTileColumns[kMostRows + 1] = {0, 2, 2, 2, 2};
#else
constexpr int kTileColumns[kMostRows + 1] = {0, 12, kLanes == 16 ? 12 : 6, kLanes == 16 ? 8 : 4,
                                             kLanes == 16 ? 6 : 3};
#endif

// The sums of a tile. A row of A meets row `q` of B for the first row of the tile, row q - 1 for
// the second, and so on. Column d of B meets column d + shift + c of A for column c of the tile.
template <int Rows, int Columns>
struct Tile {
  Vec sum[Rows][Columns];

  CBA_INLINE inline void load(const Block& out, int i, int j) {
    unroll<Rows>([&](auto r) CBA_INLINE {
      unroll<Columns>([&](auto c) CBA_INLINE { sum[r][c] = Vec::load(out.at(i + r, j + c)); });
    });
  }
  CBA_INLINE inline void store(const Block& out, int i, int j) const {
    unroll<Rows>([&](auto r) CBA_INLINE {
      unroll<Columns>([&](auto c) CBA_INLINE { sum[r][c].store(out.at(i + r, j + c)); });
    });
  }

  // Adds the products with column d of B to rows [kFirstRow, kEndRow) and columns [kFirst, kEnd).
  template <int kFirstRow, int kEndRow, int kFirst, int kEnd>
  CBA_INLINE inline void step(const float* a, const float* b, int64_t b_row) {
    constexpr int kCount = kEnd - kFirst;
    if constexpr (kEndRow - kFirstRow == 1) {
      const Vec tap = Vec::load(b - kFirstRow * b_row);
      unroll<kCount>([&](auto i) CBA_INLINE {
        constexpr int c = kFirst + decltype(i)::value;
        sum[kFirstRow][c] = fma(Vec::load(a + c * kLanes), tap, sum[kFirstRow][c]);
      });
    } else {
      Vec value[kCount];
      unroll<kCount>([&](auto i) CBA_INLINE { value[i] = Vec::load(a + (kFirst + i) * kLanes); });
      unroll<kEndRow - kFirstRow>([&](auto k) CBA_INLINE {
        constexpr int r = kFirstRow + decltype(k)::value;
        const Vec tap = Vec::load(b - r * b_row);
        unroll<kCount>([&](auto i) CBA_INLINE {
          sum[r][kFirst + i] = fma(value[i], tap, sum[r][kFirst + i]);
        });
      });
    }
  }

  // Adds the products with a row of A whose elements all meet a column of B for every column of the
  // tile, as in maps half as wide as the kernel.
  template <int kFirstRow, int kEndRow>
  CBA_INLINE inline void add_covered_row(const float* a, int a_width, int shift, const float* b,
                                         int64_t b_row) {
    const float* tap = b - shift * kLanes;
    for (int w = 0; w < a_width; ++w, a += kLanes, tap += kLanes) {
      const Vec value = Vec::load(a);
      unroll<kEndRow - kFirstRow>([&](auto k) CBA_INLINE {
        constexpr int r = kFirstRow + decltype(k)::value;
        unroll<Columns>([&](auto c) CBA_INLINE {
          sum[r][c] = fma(value, Vec::load(tap - r * b_row - c * kLanes), sum[r][c]);
        });
      });
    }
  }

  // Adds the products with the only row of B, which meets a row of A for each row of the tile.
  template <int kFirst, int kEnd>
  CBA_INLINE inline void step_rows(const float* a, int64_t a_row, const float* b) {
    const Vec tap = Vec::load(b);
    unroll<Rows>([&](auto r) CBA_INLINE {
      unroll<kEnd - kFirst>([&](auto i) CBA_INLINE {
        constexpr int c = kFirst + decltype(i)::value;
        sum[r][c] = fma(Vec::load(a + r * a_row + c * kLanes), tap, sum[r][c]);
      });
    });
  }

  // Calls step(first, end, d) for every column d of B that columns [first, end) of the tile meet:
  // first for those that only the last columns meet, then for those that all meet, and at last for
  // those that only the first columns meet.
  template <class Step>
  static CBA_INLINE inline void for_columns(int a_width, int b_width, int shift, Step step) {
    const auto met = [&](int d) CBA_INLINE { return 0 <= d && d < b_width; };
    const int full_begin = larger(0, -shift);
    const int full_end = smaller(b_width, a_width - shift - (Columns - 1));
    if (shift < 0) {
      unroll<Columns - 1>([&](auto i) CBA_INLINE {
        constexpr int c = Columns - 1 - decltype(i)::value;
        if (met(-shift - c)) step(Index<c>(), Index<Columns>(), -shift - c);
      });
    }
    for (int d = full_begin; d < full_end; ++d) step(Index<0>(), Index<Columns>(), d);
    if (full_end < b_width) {
      unroll<Columns - 1>([&](auto i) CBA_INLINE {
        constexpr int c = Columns - 1 - decltype(i)::value;
        if (met(a_width - shift - c)) step(Index<0>(), Index<c>(), a_width - shift - c);
      });
    }
  }
};

// Adds the products with rows [begin, end) of A to the tile of out at (i, j). B has at least Rows
// rows and A at least Columns columns, so that the tile crosses only one of their edges at a time.
template <int Rows, int Columns>
void correlate_tile(const Product& p, int i, int j, int begin, int end) {
  Tile<Rows, Columns> tile;
  tile.load(p.out, i, j);
  const int a_width = p.a.width, b_width = p.b.width, b_height = p.b.height, shift = j - p.rw;
  const int64_t b_row = p.b.row;
  const bool covered = shift + Columns <= 1 && a_width - shift <= b_width;
  for (int h = begin; h < end; ++h) {
    const int q = h - i + p.rh;
    const float *x = p.a.at(h, 0), *taps = p.b.data + q * b_row;
    const auto add = [&](auto first_row, auto end_row) CBA_INLINE {
      if (covered) {
        return tile.template add_covered_row<first_row, end_row>(x, a_width, shift, taps, b_row);
      }
      tile.for_columns(a_width, b_width, shift, [&](auto first, auto last, int d) CBA_INLINE {
        tile.template step<first_row, end_row, first, last>(x + (d + shift) * kLanes,
                                                            taps + d * kLanes, b_row);
      });
    };
    if (q >= Rows - 1 && q < b_height) {
      add(Index<0>(), Index<Rows>());
      continue;
    }
    unroll<Rows - 1>([&](auto k) CBA_INLINE {
      constexpr int r = decltype(k)::value + 1;
      if (q < b_height && q + 1 == r) {
        add(Index<0>(), Index<r>());
      } else if (q >= b_height && q - b_height + 1 == r) {
        add(Index<r>(), Index<Rows>());
      }
    });
  }
  tile.store(p.out, i, j);
}

// Adds all products to the tile of out at (i, j) where B is a single row, which meets row h of A
// for row i of out.
template <int Rows, int Columns>
void correlate_rows(const Product& p, int i, int j, int h, int) {
  Tile<Rows, Columns> tile;
  tile.load(p.out, i, j);
  const int shift = j - p.rw;
  const float *x = p.a.at(h, 0), *taps = p.b.data;
  tile.for_columns(p.a.width, p.b.width, shift, [&](auto first, auto last, int d) CBA_INLINE {
    tile.template step_rows<first, last>(x + (d + shift) * kLanes, p.a.row, taps + d * kLanes);
  });
  tile.store(p.out, i, j);
}

using TileFunction = void (*)(const Product&, int, int, int, int);

struct TileTable {
  TileFunction at[kMostRows + 1][kTileColumns[1] + 1];
  TileFunction single_row[kMostRows + 1][kTileColumns[kMostRows] + 1];
};

template <int Rows, int Columns>
constexpr void fill_tiles(TileTable& table) {
  table.at[Rows][Columns] = correlate_tile<Rows, Columns>;
  if constexpr (Columns <= kTileColumns[kMostRows]) {
    table.single_row[Rows][Columns] = correlate_rows<Rows, Columns>;
  }
  if constexpr (Columns > 1) {
    fill_tiles<Rows, Columns - 1>(table);
  } else if constexpr (Rows > 1) {
    fill_tiles<Rows - 1, kTileColumns[Rows - 1]>(table);
  }
}

constexpr TileTable all_tiles() {
  TileTable table{};
  fill_tiles<kMostRows, kTileColumns[kMostRows]>(table);
  return table;
}

constexpr TileTable kTiles = all_tiles();

// Calls f(begin, count) for pieces of [begin, end) of nearly equal length: 7 = 4 + 3.
template <class F>
inline void for_pieces(int begin, int end, int longest, F f) {
  const int size = end - begin, pieces = (size + longest - 1) / longest;
  for (int p = 0; p < pieces; ++p) {
    const int from = size * p / pieces, to = size * (p + 1) / pieces;
    f(begin + from, to - from);
  }
}

// How many rows of A and B stay in the first-level cache while the tiles of a few rows of out use
// them.
inline int rows_at_a_time(const Product& p) {
  constexpr int kCachedFloats = 6144;
  return larger(1, kCachedFloats / ((p.a.width + p.b.width) * kLanes));
}

// Adds the product to `out`.
inline void correlate(const Product& p) {
  if (p.b.height == 1) {
    const int columns = smaller(kTileColumns[kMostRows], p.a.width);
    const int begin = larger(0, p.rh), end = smaller(p.out.height, p.rh + p.a.height);
    return for_pieces(begin, end, kMostRows, [&](int i, int rows) {
      for_pieces(0, p.out.width, columns,
                 [&](int j, int count) { kTiles.single_row[rows][count](p, i, j, i - p.rh, 0); });
    });
  }
  const int most_rows = smaller(kMostRows, p.b.height);
  const int columns = smaller(kTileColumns[most_rows], p.a.width);
  const int step = rows_at_a_time(p);
  for_pieces(0, p.out.height, most_rows, [&](int i, int rows) {
    const int end = smaller(p.a.height, i - p.rh + p.b.height + rows - 1);
    for (int h = larger(0, i - p.rh); h < end; h += step) {
      for_pieces(0, p.out.width, columns, [&](int j, int count) {
        kTiles.at[rows][count](p, i, j, h, smaller(end, h + step));
      });
    }
  });
}

class DirectConv {
 public:
  DirectConv(const DirectTask& task, Scratch scratch) : conv_(task.conv), flipped_(task.flipped) {
    // The kernel is B, or the output where products are summed.
    const Planes& kernel = conv_.reduce ? conv_.out : conv_.b;
    // Tall kernels are swapped, so that the inner loop runs along the longer side.
    swapped_ = kernel.height > kernel.width;
    const int rh = static_cast<int>(kernel.height / 2), rw = static_cast<int>(kernel.width / 2);
    product_ = {block(scratch, conv_.a), block(scratch, conv_.b), block(scratch, conv_.out),
                swapped_ ? rw : rh, swapped_ ? rh : rw};
    row_ = scratch.take(swapped_ ? longest_row() : 0);
    used_ = scratch.used();
  }

  int64_t scratch_used() const { return used_; }
  void prepare() {}

  void run(int64_t begin, int64_t end) {
    int64_t group = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item % conv_.images;
      if (item / conv_.images != group) {
        group = item / conv_.images;
        load_b(0, group);
      }
      clear_out();
      load(conv_.a, image, group, product_.a);
      correlate(product_);
      store(image, group);
    }
  }

  void run_reduce(int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      clear_out();
      for (int64_t image = 0; image < conv_.images; ++image) {
        load(conv_.a, image, group, product_.a);
        load_b(image, group);
        correlate(product_);
      }
      turn(product_.out);
      store(0, group);
    }
  }

 private:
  Block block(Scratch& scratch, const Planes& planes) const {
    const int height = static_cast<int>(swapped_ ? planes.width : planes.height);
    const int width = static_cast<int>(swapped_ ? planes.height : planes.width);
    // If swapped, a row of the tensor is a column here. With an odd number of cache lines from one
    // element to the next it spreads over all sets of the cache.
    const int64_t line = 16, floats = int64_t(width) * kLanes;
    const int64_t row = swapped_ ? (floats + line - 1) / line * line | line : floats;
    Block block{nullptr, height, width, row};
    block.data = scratch.take(block.floats());
    return block;
  }

  int64_t longest_row() const {
    const int a = product_.a.height, b = product_.b.height, out = product_.out.height;
    return int64_t(larger(larger(a, b), out)) * kLanes;
  }

  // Rows without gaps are read and written as one row, because each short row would end in a
  // partial vector.
  static bool has_gaps(const Planes& p) { return p.stride_h != p.stride_w * p.width; }

  void load(const Planes& from, int64_t image, int64_t group, const Block& to) const {
    const int lanes = lanes_of_group(conv_, group);
    const int height = static_cast<int>(from.height), width = static_cast<int>(from.width);
    const int64_t c = group * kLanes;
    if (swapped_) {
      for (int h = 0; h < height; ++h) {
        load_row(from, image, c, lanes, h, 0, width, row_);
        for (int w = 0; w < width; ++w) Vec::load(row_ + w * kLanes).store(to.at(w, h));
      }
    } else if (has_gaps(from)) {
      for (int h = 0; h < height; ++h) {
        load_row(from, image, c, lanes, h, 0, width, to.at(h, 0));
      }
    } else {
      load_row(from, image, c, lanes, 0, 0, height * width, to.data);
    }
  }

  void load_b(int64_t image, int64_t group) {
    load(conv_.b, image, group, product_.b);
    if (flipped_) turn(product_.b);
  }

  void clear_out() {
    const Block& out = product_.out;
    for (int64_t i = 0; i < out.floats(); i += kLanes) Vec::zero().store(out.data + i);
  }

  void store(int64_t image, int64_t group) const {
    const Block& from = product_.out;
    const Planes& to = conv_.out;
    const int lanes = lanes_of_group(conv_, group);
    const int height = static_cast<int>(to.height), width = static_cast<int>(to.width);
    const int64_t c = group * kLanes;
    const Epilogue finish = epilogue_of(conv_, group, 1.0f);
    if (swapped_) {
      for (int h = 0; h < height; ++h) {
        for (int w = 0; w < width; ++w) Vec::load(from.at(w, h)).store(row_ + w * kLanes);
        store_row(row_, to, image, c, lanes, h, 0, width, finish);
      }
    } else if (has_gaps(to)) {
      for (int h = 0; h < height; ++h) {
        store_row(from.at(h, 0), to, image, c, lanes, h, 0, width, finish);
      }
    } else {
      store_row(from.data, to, image, c, lanes, 0, 0, height * width, finish);
    }
  }

  // Turns a block by 180 degrees.
  static void turn(const Block& block) {
    for (int h = 0, other = block.height - 1; h <= other; ++h, --other) {
      float *first = block.at(h, 0), *last = block.at(other, block.width - 1);
      const float* end = h < other ? block.at(h, block.width) : block.at(h, block.width / 2);
      for (; first < end; first += kLanes, last -= kLanes) {
        const Vec value = Vec::load(first);
        Vec::load(last).store(first);
        value.store(last);
      }
    }
  }

  const ConvParams& conv_;
  const bool flipped_;
  bool swapped_;
  Product product_;
  float* row_;
  int64_t used_;
};

}  // namespace
}  // namespace cba
