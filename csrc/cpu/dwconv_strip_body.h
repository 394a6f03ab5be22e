// The product of planes for long and narrow kernels (51x5, 1x51, ...), one channel per lane:
// Fourier transforms along the kernel's long side, taps along its short side.
//
// Lines along the long side are numbered from 0. Lines s and s + half make one complex line z[s].
// Because the kernel is real, their convolutions stay apart in the real and imaginary parts. With
// the spectra Z of the image's lines and W of the kernel's lines,
//
//   forward, grad_x: Y[s] = sum over t of W[t] Z[s + t - radius]
//   grad_weight:     V[t] = sum over images and s of Z[s + t - radius] conj(G[s]), its real part
//
// (its imaginary part mixes the two halves). At a time as many spectra Z are kept as the kernel has
// lines.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dft_axes_body.h"

namespace cba {
namespace {

// The lines of a plane: sample l of line s is at line(s) + l * sample_stride. One more sample, with
// the number `samples`, and `margin` more lines on both sides stay zero or take what is dropped.
struct LineBlock {
  float* data;
  int64_t line_stride, sample_stride;
  int lines, margin, samples;  // `lines` with their margins

  static LineBlock take(Scratch& scratch, bool along_height, int samples, int lines, int margin) {
    const int all_lines = lines + 2 * margin, all_samples = samples + 1;
    const int64_t line_stride = along_height ? kLanes : all_samples * kLanes;
    const int64_t sample_stride = along_height ? all_lines * kLanes : kLanes;
    float* data = scratch.take(int64_t(all_lines) * all_samples * kLanes);
    return {data, line_stride, sample_stride, all_lines, margin, samples};
  }
  float* line(int s) const { return data + (s + margin) * line_stride; }
  // Writes zeros where a load of `used` lines does not write.
  void clear(int used) const {
    for (int s = -margin; s < lines - margin; ++s) {
      const bool written = s >= 0 && s < used;
      for (int l = written ? samples : 0; l <= samples; ++l) {
        Vec::zero().store(line(s) + l * sample_stride);
      }
    }
  }
};

class StripConv {
 public:
  StripConv(const StripTask& task, Scratch scratch)
      : conv_(task.conv),
        axis_(task.axis),
        along_height_(task.along_height),
        flipped_(task.flipped),
        along_(axis_.dft) {
    const Planes& kernel = conv_.reduce ? conv_.out : conv_.b;
    taps_ = static_cast<int>(along_height_ ? kernel.width : kernel.height);
    lines_ = static_cast<int>(along_height_ ? conv_.a.width : conv_.a.height);
    half_ = (lines_ + 1) / 2;
    const int samples = axis_.max_count;
    image_ = LineBlock::take(scratch, along_height_, samples, 2 * half_, taps_ / 2);
    // The kernel has one more line, which stays zero: the imaginary part of its lines.
    other_ = LineBlock::take(scratch, along_height_, samples, 2 * half_, 0);
    kernel_ = LineBlock::take(scratch, along_height_, samples, taps_ + 1, 0);
    spectra_ = scratch.take(taps_ * spectrum_size());
    taps_spectra_ = scratch.take(taps_ * spectrum_size());
    buffer_ = scratch.take(spectrum_size());
    offsets_ = reinterpret_cast<int32_t*>(scratch.take(int64_t(axis_.num_tiles) * 3 * axis_.dft.n));
    used_ = scratch.used();
  }

  int64_t scratch_used() const { return used_; }

  // Writes tables and zeros, which run() does not change.
  void prepare() {
    image_.clear(lines_);
    other_.clear(lines_);
    kernel_.clear(taps_);
    const int n = axis_.dft.n;
    const LineBlock& b = conv_.reduce ? other_ : kernel_;
    const LineBlock& out = conv_.reduce ? kernel_ : other_;
    for (int t = 0; t < axis_.num_tiles; ++t) {
      const AxisTile& tile = axis_.tiles[t];
      int32_t* to = offsets_ + int64_t(t) * 3 * n;
      make_offsets(tile.a, n, static_cast<int>(image_.sample_stride), image_.samples, to);
      make_offsets(tile.b, n, static_cast<int>(b.sample_stride), b.samples, to + n);
      make_offsets(tile.out, n, static_cast<int>(out.sample_stride), out.samples, to + 2 * n);
    }
  }

  void run(int64_t begin, int64_t end) {
    int64_t group = -1;
    for (int64_t item = begin; item < end; ++item) {
      if (item / conv_.images != group) {
        group = item / conv_.images;
        transform_kernel(group);
      }
      for (int tile = 0; tile < axis_.num_tiles; ++tile) {
        load(conv_.a, item % conv_.images, group, axis_.tiles[tile].a, lines_, image_);
        convolve(tile);
        store(item % conv_.images, group, axis_.tiles[tile].out, lines_, other_);
      }
    }
  }

  void run_reduce(int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t i = 0; i < taps_ * spectrum_size(); i += kLanes) {
        Vec::zero().store(taps_spectra_ + i);
      }
      for (int64_t image = 0; image < conv_.images; ++image) {
        for (int tile = 0; tile < axis_.num_tiles; ++tile) {
          load(conv_.a, image, group, axis_.tiles[tile].a, lines_, image_);
          load(conv_.b, image, group, axis_.tiles[tile].b, lines_, other_);
          accumulate(tile);
        }
      }
      for (int t = 0; t < taps_; ++t) {
        along_.inverse(taps_spectra_ + t * spectrum_size(), kernel_.line(t), kernel_.line(taps_),
                       offsets(0) + 2 * axis_.dft.n);
      }
      store(0, group, axis_.tiles[0].out, taps_, kernel_);
    }
  }

 private:
  int64_t spectrum_size() const { return int64_t(axis_.dft.n) * kComplex; }
  const int32_t* offsets(int tile) const { return offsets_ + int64_t(tile) * 3 * axis_.dft.n; }

  void load(const Planes& from, int64_t image, int64_t group, const AxisRange& range, int lines,
            const LineBlock& to) const {
    const int lanes = lanes_of_group(conv_, group);
    const int64_t c = group * kLanes;
    if (along_height_) {
      for (int l = 0; l < range.count; ++l) {
        load_row(from, image, c, lanes, range.begin + l, 0, lines,
                 to.line(0) + l * to.sample_stride);
      }
    } else {
      for (int s = 0; s < lines; ++s) {
        load_row(from, image, c, lanes, s, range.begin, range.count, to.line(s));
      }
    }
  }

  void store(int64_t image, int64_t group, const AxisRange& range, int lines,
             const LineBlock& from) const {
    const int lanes = lanes_of_group(conv_, group);
    const int64_t c = group * kLanes;
    const Epilogue finish = epilogue_of(conv_, group, 1.0f / float(axis_.dft.n));
    if (along_height_) {
      for (int l = 0; l < range.count; ++l) {
        store_row(from.line(0) + l * from.sample_stride, conv_.out, image, c, lanes,
                  range.begin + l, 0, lines, finish);
      }
    } else {
      for (int s = 0; s < lines; ++s) {
        store_row(from.line(s), conv_.out, image, c, lanes, s, range.begin, range.count, finish);
      }
    }
  }

  void transform_kernel(int64_t group) {
    load(conv_.b, 0, group, axis_.tiles[0].b, taps_, kernel_);
    for (int t = 0; t < taps_; ++t) {
      along_.forward(kernel_.line(flipped_ ? taps_ - 1 - t : t), kernel_.line(taps_),
                     offsets(0) + axis_.dft.n, taps_spectra_ + t * spectrum_size());
    }
  }

  // The place of complex line s of the image in the ring of `taps_` spectra.
  float* spectrum_of_line(int s) const {
    return spectra_ + (s + taps_ / 2) % taps_ * spectrum_size();
  }
  void transform_line(int s, int tile) {
    along_.forward(image_.line(s), image_.line(s + half_), offsets(tile), spectrum_of_line(s));
  }

  void convolve(int tile) {
    const int radius = taps_ / 2;
    for (int s = -radius; s < radius; ++s) transform_line(s, tile);
    for (int s = 0; s < half_; ++s) {
      transform_line(s + radius, tile);
      apply_taps(s);
      along_.inverse(buffer_, other_.line(s), other_.line(s + half_),
                     offsets(tile) + 2 * axis_.dft.n);
    }
  }

  void apply_taps(int s) {
    const int64_t size = spectrum_size();
    // Two frequencies at a time make enough independent sums to hide the latency of additions.
    for (int64_t p = 0; p < size; p += 2 * kComplex) {
      const bool pair = p + kComplex < size;
      Complex first{Vec::zero(), Vec::zero()}, second = first;
      for (int t = 0; t < taps_; ++t) {
        const float* w = taps_spectra_ + t * size + p;
        const float* z = spectrum_of_line(s + t - taps_ / 2) + p;
        first = first + load_complex<false>(w) * load_complex<false>(z);
        if (pair) {
          second = second + load_complex<false>(w + kComplex) * load_complex<false>(z + kComplex);
        }
      }
      store_complex<false>(first, buffer_ + p);
      if (pair) store_complex<false>(second, buffer_ + p + kComplex);
    }
  }

  // The table of B puts grad at -o instead of o, which gives conj(G) for a real line. For a complex
  // line that is conj(G) at the opposite frequency.
  void accumulate(int tile) {
    const int radius = taps_ / 2;
    for (int s = -radius; s < radius; ++s) transform_line(s, tile);
    for (int s = 0; s < half_; ++s) {
      transform_line(s + radius, tile);
      along_.forward(other_.line(s), other_.line(s + half_), offsets(tile) + axis_.dft.n, buffer_);
      for (int t = 0; t < taps_; ++t) {
        float* sum = taps_spectra_ + t * spectrum_size();
        const float* z = spectrum_of_line(s + t - radius);
        for (int p = 0; p < axis_.dft.n; ++p) {
          const Complex g =
              load_complex<false>(buffer_ + int64_t(axis_.dft.conjugate[p]) * kComplex);
          const Complex x = load_complex<false>(z + int64_t(p) * kComplex);
          float* to = sum + int64_t(p) * kComplex;
          const Complex old = load_complex<false>(to);
          // x times conj(g)
          store_complex<false>(
              {fma(x.re, g.re, fma(x.im, g.im, old.re)), fma(x.im, g.re, fnma(x.re, g.im, old.im))},
              to);
        }
      }
    }
  }

  const ConvParams& conv_;
  const AxisPlan& axis_;
  const bool along_height_, flipped_;
  const Transform along_;
  int taps_, lines_, half_;
  LineBlock image_, other_, kernel_;
  float *spectra_, *taps_spectra_, *buffer_;
  int32_t* offsets_;
  int64_t used_;
};

}  // namespace
}  // namespace cba
