// The product of planes by 2-D Fourier transforms, one channel per lane.
//
// First the rows are transformed. Two real rows make one complex transform, from which both spectra
// are separated; one column of each pair of opposite frequencies is kept (57 of 112). Then each
// column is transformed, multiplied and transformed back within 2 * n complex vectors, which stay
// in the first-level cache. At last the rows are transformed back. The columns of an image lie in a
// `Plane`, which takes 361 kB for 96 x 96 pixels in 8 lanes and twice that in 16.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dft_axes_body.h"

namespace cba {
namespace {

// The spectra of a plane's rows: column j is a frequency, r a row. Two more rows follow: one is
// written with what is dropped, one holds zeros. The number of rows is odd, so that the columns of
// a row do not fall into the same sets of the cache.
struct Plane {
  float* data;
  int rows;

  static int rows_for(int count) { return ((count + 1) / 2 * 2 + 2) | 1; }
  static Plane take(Scratch& scratch, int columns, int count) {
    const int rows = rows_for(count);
    return {scratch.take(int64_t(columns) * rows * kComplex), rows};
  }
  float* column(int j) const { return data + int64_t(j) * rows * kComplex; }
  int dropped() const { return rows - 2; }
  int zero() const { return rows - 1; }
  void clear(int columns) const {
    for (int j = 0; j < columns; ++j) {
      float* p = column(j) + int64_t(zero()) * kComplex;
      Vec::zero().store(p);
      Vec::zero().store(p + kLanes);
    }
  }
};

// Pairs of rows that are copied to and from the planes at a time; two make 256 contiguous bytes.
constexpr int kPairs = 2;

struct TileOffsets {
  const int32_t *a, *b, *out;
};

class FftConv {
 public:
  FftConv(const FftTask& task, Scratch scratch)
      : conv_(task.conv),
        width_(task.width),
        height_(task.height),
        along_width_(width_.dft),
        along_height_(height_.dft),
        columns_(width_.dft.num_half) {
    const int rows_b = conv_.reduce ? height_.max_count : static_cast<int>(conv_.b.height);
    a_ = Plane::take(scratch, columns_, height_.max_count);
    b_ = Plane::take(scratch, columns_, rows_b);
    spectrum_ = scratch.take(columns_ * spectrum_size());
    const int longest = width_.dft.n > height_.dft.n ? width_.dft.n : height_.dft.n;
    buffer_size_ = int64_t(longest) * kComplex;
    buffers_ = scratch.take((kPairs > 2 ? kPairs : 2) * buffer_size_);
    for (float*& row : rows_) row = scratch.take(int64_t(width_.max_count + 1) * kLanes);
    width_offsets_ = take_offsets(scratch, width_);
    height_offsets_ = take_offsets(scratch, height_);
    used_ = scratch.used();
  }

  int64_t scratch_used() const { return used_; }

  // Writes tables and zeros, which run() does not change.
  void prepare() {
    a_.clear(columns_);
    b_.clear(columns_);
    fill_offsets(width_, kLanes, width_offsets_, nullptr, nullptr);
    fill_offsets(height_, kComplex, height_offsets_, &a_, &b_);
  }

  // Items are pairs (group, image). The spectrum of a group's B serves all its images and tiles.
  void run(int64_t begin, int64_t end) {
    int64_t group = -1;
    bool keep = false, kept = false;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item % conv_.images;
      if (item / conv_.images != group) {
        group = item / conv_.images;
        const int64_t last = (group + 1) * conv_.images;
        keep = (end < last ? end : last) - item > 1 || num_tiles() > 1;
        kept = false;
        load_rows(conv_.b, 0, group, 0, b_);
      }
      for (int tile = 0; tile < num_tiles(); ++tile) {
        load_rows(conv_.a, image, group, tile, a_);
        convolve_columns(tile, keep, kept);
        kept = keep;
        store_rows(image, group, tile);
      }
    }
  }

  // Items are groups. Products are summed over images and tiles before they are transformed back.
  void run_reduce(int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      bool first = true;
      for (int64_t image = 0; image < conv_.images; ++image) {
        for (int tile = 0; tile < num_tiles(); ++tile) {
          load_rows(conv_.a, image, group, tile, a_);
          load_rows(conv_.b, image, group, tile, b_);
          if (conv_.images * num_tiles() == 1) {
            convolve_columns(tile, false, false);
          } else {
            accumulate_columns(tile, first);
          }
          first = false;
        }
      }
      if (conv_.images * num_tiles() > 1) finish_columns();
      store_rows(0, group, 0);
    }
  }

 private:
  float* buffer(int k) const { return buffers_ + k * buffer_size_; }
  int num_tiles() const { return width_.num_tiles * height_.num_tiles; }
  int64_t spectrum_size() const { return int64_t(height_.dft.n) * kComplex; }
  const AxisTile& width_tile(int tile) const { return width_.tiles[tile % width_.num_tiles]; }
  const AxisTile& height_tile(int tile) const { return height_.tiles[tile / width_.num_tiles]; }
  TileOffsets offsets_of(const int32_t* all, int n, int tile) const {
    const int32_t* first = all + int64_t(tile) * 3 * n;
    return {first, first + n, first + 2 * n};
  }
  TileOffsets width_offsets(int tile) const {
    return offsets_of(width_offsets_, width_.dft.n, tile % width_.num_tiles);
  }
  TileOffsets height_offsets(int tile) const {
    return offsets_of(height_offsets_, height_.dft.n, tile / width_.num_tiles);
  }

  static int32_t* take_offsets(Scratch& scratch, const AxisPlan& axis) {
    return reinterpret_cast<int32_t*>(scratch.take(int64_t(axis.num_tiles) * 3 * axis.dft.n));
  }

  // Rows have one more sample, which is zero or takes what is dropped; planes have one for each.
  static void fill_offsets(const AxisPlan& axis, int stride, int32_t* to, const Plane* a,
                           const Plane* b) {
    const int n = axis.dft.n;
    for (int t = 0; t < axis.num_tiles; ++t) {
      const AxisTile& tile = axis.tiles[t];
      make_offsets(tile.a, n, stride, a ? a->zero() : tile.a.count, to + (3 * t) * n);
      make_offsets(tile.b, n, stride, b ? b->zero() : tile.b.count, to + (3 * t + 1) * n);
      make_offsets(tile.out, n, stride, a ? a->dropped() : tile.out.count, to + (3 * t + 2) * n);
    }
  }

  void load_rows(const Planes& from, int64_t image, int64_t group, int tile, const Plane& to) {
    const bool is_a = &from == &conv_.a;
    const AxisRange& across = is_a ? width_tile(tile).a : width_tile(tile).b;
    const AxisRange& down = is_a ? height_tile(tile).a : height_tile(tile).b;
    const int32_t* offsets = is_a ? width_offsets(tile).a : width_offsets(tile).b;
    const int lanes = lanes_of_group(conv_, group);
    for (int r = 0; r < down.count; r += 2 * kPairs) {
      const int pairs = smaller(kPairs, (down.count - r + 1) / 2);
      for (int k = 0; k < pairs; ++k) {
        for (int i = 0; i < 2; ++i) {
          float* row = rows_[i];
          const int number = r + 2 * k + i;
          if (number < down.count) {
            load_row(from, image, group * kLanes, lanes, down.begin + number, across.begin,
                     across.count, row);
          } else {
            for (int t = 0; t < across.count; ++t) Vec::zero().store(row + t * kLanes);
          }
          Vec::zero().store(row + int64_t(across.count) * kLanes);
        }
        along_width_.forward(rows_[0], rows_[1], offsets, buffer(k));
      }
      separate(pairs, to, r);
    }
  }

  // Separates the spectra of pairs of rows. Z = X + i Y with Hermitian X and Y, so that
  // 2 X = Z + conj(Z') and 2 Y = -i (Z - conj(Z')), where Z' is Z at the opposite frequency.
  // store_rows() divides by the factors of 2.
  void separate(int pairs, const Plane& to, int row) const {
    const DftPlan& plan = width_.dft;
    for (int j = 0; j < columns_; ++j) {
      const int64_t at = int64_t(plan.half[j]) * kComplex;
      const int64_t opposite = int64_t(plan.conjugate[plan.half[j]]) * kComplex;
      float* x = to.column(j) + int64_t(row) * kComplex;
      for (int k = 0; k < pairs; ++k, x += 2 * kComplex) {
        const Complex p = load_complex<false>(buffer(k) + at);
        const Complex q = load_complex<false>(buffer(k) + opposite);
        store_complex<false>({p.re + q.re, p.im - q.im}, x);
        store_complex<false>({p.im + q.im, q.re - p.re}, x + kComplex);
      }
    }
  }

  void convolve_columns(int tile, bool keep, bool kept) {
    const TileOffsets offsets = height_offsets(tile);
    for (int j = 0; j < columns_; ++j) {
      float* spectrum = keep ? spectrum_ + j * spectrum_size() : buffer(1);
      float* b = b_.column(j);
      if (!kept) along_height_.forward(b, b + kLanes, offsets.b, spectrum);
      float* a = a_.column(j);
      along_height_.forward_multiply(a, a + kLanes, offsets.a, spectrum, buffer(0));
      along_height_.inverse_but_last(buffer(0), a, a + kLanes, offsets.out);
    }
  }

  void accumulate_columns(int tile, bool first) {
    const TileOffsets offsets = height_offsets(tile);
    for (int j = 0; j < columns_; ++j) {
      const float *a = a_.column(j), *b = b_.column(j);
      along_height_.forward(a, a + kLanes, offsets.a, buffer(0));
      along_height_.forward(b, b + kLanes, offsets.b, buffer(1));
      float* sum = spectrum_ + j * spectrum_size();
      for (int64_t p = 0; p < spectrum_size(); p += kComplex) {
        Complex product = load_complex<false>(buffer(0) + p) * load_complex<false>(buffer(1) + p);
        if (!first) product = product + load_complex<false>(sum + p);
        store_complex<false>(product, sum + p);
      }
    }
  }

  void finish_columns() {
    for (int j = 0; j < columns_; ++j) {
      float* a = a_.column(j);
      along_height_.inverse(spectrum_ + j * spectrum_size(), a, a + kLanes, height_offsets(0).out);
    }
  }

  void store_rows(int64_t image, int64_t group, int tile) {
    const AxisRange &across = width_tile(tile).out, &down = height_tile(tile).out;
    const int lanes = lanes_of_group(conv_, group);
    // separate() doubled A and B, and neither inverse transform was divided by its length.
    const float scale = 0.25f / (float(width_.dft.n) * float(height_.dft.n));
    const Epilogue finish = epilogue_of(conv_, group, scale);
    for (int r = 0; r < down.count; r += 2 * kPairs) {
      const int pairs = smaller(kPairs, (down.count - r + 1) / 2);
      join(r, down.count, pairs);
      for (int k = 0; k < pairs; ++k) {
        along_width_.inverse(buffer(k), rows_[2], rows_[3], width_offsets(tile).out);
        for (int i = 0; i < 2; ++i) {
          const int number = r + 2 * k + i;
          if (number == down.count) break;
          store_row(rows_[2 + i], conv_.out, image, group * kLanes, lanes, down.begin + number,
                    across.begin, across.count, finish);
        }
      }
    }
  }

  // Makes Z = X + i Y of pairs of rows at all frequencies from X and Y at half of them. Rows from
  // `end` on are zero.
  void join(int row, int end, int pairs) const {
    const DftPlan& plan = width_.dft;
    for (int j = 0; j < columns_; ++j) {
      const int64_t at = int64_t(plan.half[j]) * kComplex;
      const int64_t opposite = int64_t(plan.conjugate[plan.half[j]]) * kComplex;
      const float* column = a_.column(j);
      for (int k = 0; k < pairs; ++k) {
        const int first = row + 2 * k, second = first + 1 < end ? first + 1 : a_.zero();
        const Complex x = load_complex<false>(column + int64_t(first) * kComplex);
        const Complex y = load_complex<false>(column + int64_t(second) * kComplex);
        store_complex<false>({x.re + y.im, y.re - x.im}, buffer(k) + opposite);
        store_complex<false>({x.re - y.im, x.im + y.re}, buffer(k) + at);
      }
    }
  }

  const ConvParams& conv_;
  const AxisPlan &width_, &height_;
  const Transform along_width_, along_height_;
  const int columns_;
  Plane a_, b_;
  float* spectrum_;
  int64_t buffer_size_;
  float* buffers_;
  float* rows_[4];
  int32_t *width_offsets_, *height_offsets_;
  int64_t used_;
};

}  // namespace
}  // namespace cba
