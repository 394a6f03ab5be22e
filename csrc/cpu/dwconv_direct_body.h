// The product of planes tap by tap, one channel per lane: for small maps, where a transform has
// more padding than data, and for whoever wants a NaN to reach only the pixels under the kernel.
//
//   out[i][j] = sum over h, w of A[h][w] * B[h - i + rh][w - j + rw]
//
// forward and grad_x: A = image, B = kernel (turned for grad_x), out = image. grad_weight: A =
// grad, B = x, out = kernel turned by 180 degrees, because h - i + rh = h + i' - rh with i' = 2 rh
// - i. Two rows and up to six columns of out are in registers; each element of A is loaded once for
// them and meets twelve of B. No product is formed with padding.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dwconv_io_body.h"

namespace cba {
namespace {

constexpr int kTileRows = 2, kTileColumns = 6;

struct Block {
  float* data;
  int height, width;

  int64_t floats() const { return int64_t(height) * width * kLanes; }
  float* at(int h, int w) const { return data + (int64_t(h) * width + w) * kLanes; }
};

// Adds what a row of A gives to a tile of out: `top` and `bottom` are the rows of B that it meets
// for the tile's two rows, `shift` is the column of B that A[0] meets for the tile's first column.
template <int Columns, bool kTop, bool kBottom>
CBA_INLINE inline void accumulate_row(Vec (&sum)[kTileRows][Columns], const float* a, int a_width,
                                      const float* top, const float* bottom, int b_width,
                                      int shift) {
  const int begin = larger(0, -shift), end = smaller(a_width, Columns - 1 + b_width - shift);
  // Between these all columns of the tile have a tap.
  const int full_begin = smaller(end, larger(begin, Columns - 1 - shift));
  const int full_end = larger(full_begin, smaller(end, b_width - shift));
  const auto edge = [&](int from, int to) CBA_INLINE {
    for (int w = from; w < to; ++w) {
      const Vec value = Vec::load(a + int64_t(w) * kLanes);
      unroll<Columns>([&](auto c) CBA_INLINE {
        const int tap = w + shift - c;
        if (tap < 0 || tap >= b_width) return;
        if (kTop) sum[0][c] = fma(value, Vec::load(top + int64_t(tap) * kLanes), sum[0][c]);
        if (kBottom) sum[1][c] = fma(value, Vec::load(bottom + int64_t(tap) * kLanes), sum[1][c]);
      });
    }
  };
  edge(begin, full_begin);
  for (int w = full_begin; w < full_end; ++w) {
    const Vec value = Vec::load(a + int64_t(w) * kLanes);
    const int64_t tap = int64_t(w + shift) * kLanes;
    unroll<Columns>([&](auto c) CBA_INLINE {
      if (kTop) sum[0][c] = fma(value, Vec::load(top + tap - c * kLanes), sum[0][c]);
      if (kBottom) sum[1][c] = fma(value, Vec::load(bottom + tap - c * kLanes), sum[1][c]);
    });
  }
  edge(full_end, end);
}

template <int Columns>
void correlate_tile(const Block& a, const Block& b, const Block& out, int i, int j, int rh,
                    int rw) {
  const int rows = smaller(kTileRows, out.height - i);
  Vec sum[kTileRows][Columns];
  for (int r = 0; r < kTileRows; ++r) {
    unroll<Columns>([&](auto c) CBA_INLINE {
      sum[r][c] = r < rows ? Vec::load(out.at(i + r, j + c)) : Vec::zero();
    });
  }
  // Row h of A meets row h - i + rh of B for the first row of out, the one before for the second.
  const int begin = larger(0, i - rh), end = smaller(a.height, i + rows - 1 - rh + b.height);
  for (int h = begin; h < end; ++h) {
    const int row = h - i + rh;
    const bool has_top = row < b.height, has_bottom = row > 0 && rows > 1;
    const float *x = a.at(h, 0), *top = b.at(row, 0), *bottom = b.at(row - 1, 0);
    if (has_top && has_bottom) {
      accumulate_row<Columns, true, true>(sum, x, a.width, top, bottom, b.width, rw - j);
    } else if (has_top) {
      accumulate_row<Columns, true, false>(sum, x, a.width, top, bottom, b.width, rw - j);
    } else {
      accumulate_row<Columns, false, true>(sum, x, a.width, top, bottom, b.width, rw - j);
    }
  }
  for (int r = 0; r < rows; ++r) {
    unroll<Columns>([&](auto c) CBA_INLINE { sum[r][c].store(out.at(i + r, j + c)); });
  }
}

// Adds the product to `out`.
inline void correlate(const Block& a, const Block& b, const Block& out, int rh, int rw) {
  using Tile = void (*)(const Block&, const Block&, const Block&, int, int, int, int);
  static constexpr Tile kTiles[] = {nullptr,           correlate_tile<1>, correlate_tile<2>,
                                    correlate_tile<3>, correlate_tile<4>, correlate_tile<5>,
                                    correlate_tile<6>};
  const int tiles = (out.width + kTileColumns - 1) / kTileColumns;
  for (int i = 0; i < out.height; i += kTileRows) {
    for (int t = 0; t < tiles; ++t) {  // of nearly equal widths: 7 = 4 + 3
      const int from = out.width * t / tiles, to = out.width * (t + 1) / tiles;
      kTiles[to - from](a, b, out, i, from, rh, rw);
    }
  }
}

class DirectConv {
 public:
  DirectConv(const DirectTask& task, Scratch scratch) : conv_(task.conv), flipped_(task.flipped) {
    a_ = block(scratch, conv_.a);
    b_ = block(scratch, conv_.b);
    out_ = block(scratch, conv_.out);
    // The kernel is B, or out where the products are summed.
    const Planes& kernel = conv_.reduce ? conv_.out : conv_.b;
    rh_ = static_cast<int>(kernel.height / 2);
    rw_ = static_cast<int>(kernel.width / 2);
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
      load(conv_.a, image, group, a_);
      correlate(a_, b_, out_, rh_, rw_);
      store(image, group);
    }
  }

  void run_reduce(int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      clear_out();
      for (int64_t image = 0; image < conv_.images; ++image) {
        load(conv_.a, image, group, a_);
        load_b(image, group);
        correlate(a_, b_, out_, rh_, rw_);
      }
      turn(out_);
      store(0, group);
    }
  }

 private:
  static Block block(Scratch& scratch, const Planes& planes) {
    Block block{nullptr, static_cast<int>(planes.height), static_cast<int>(planes.width)};
    block.data = scratch.take(block.floats());
    return block;
  }

  // Rows without gaps are read and written as one: short rows would cost a partial vector each.
  static bool has_gaps(const Planes& p) { return p.stride_h != p.stride_w * p.width; }

  void load(const Planes& from, int64_t image, int64_t group, const Block& to) const {
    const int lanes = lanes_of_group(conv_, group);
    if (!has_gaps(from)) {
      load_row(from, image, group * kLanes, lanes, 0, 0, to.height * to.width, to.data);
      return;
    }
    for (int h = 0; h < to.height; ++h) {
      load_row(from, image, group * kLanes, lanes, h, 0, to.width, to.at(h, 0));
    }
  }

  void load_b(int64_t image, int64_t group) {
    load(conv_.b, image, group, b_);
    if (flipped_) turn(b_);
  }

  void clear_out() {
    for (int64_t i = 0; i < out_.floats(); i += kLanes) Vec::zero().store(out_.data + i);
  }

  void store(int64_t image, int64_t group) const {
    const int lanes = lanes_of_group(conv_, group);
    const Vec one = Vec::broadcast(1.0f), bias = bias_of(conv_, group);
    if (!has_gaps(conv_.out)) {
      store_row(out_.data, conv_.out, image, group * kLanes, lanes, 0, 0, out_.height * out_.width,
                one, bias);
      return;
    }
    for (int h = 0; h < out_.height; ++h) {
      store_row(out_.at(h, 0), conv_.out, image, group * kLanes, lanes, h, 0, out_.width, one,
                bias);
    }
  }

  // By 180 degrees: the elements in reverse order.
  static void turn(const Block& block) {
    float *first = block.data, *last = block.data + block.floats() - kLanes;
    for (; first < last; first += kLanes, last -= kLanes) {
      const Vec value = Vec::load(first);
      Vec::load(last).store(first);
      value.store(last);
    }
  }

  const ConvParams& conv_;
  const bool flipped_;
  Block a_, b_, out_;
  int rh_, rw_;
  int64_t used_;
};

}  // namespace
}  // namespace cba
