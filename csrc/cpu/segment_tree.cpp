#include "cpu/segment_tree.h"

#include <algorithm>

namespace cba {
namespace {

std::int32_t padded_size(std::int32_t n) {
  return (n + kRowPadding - 1) / kRowPadding * kRowPadding;
}

}  // namespace

SegmentTree::SegmentTree(std::int32_t height, std::int32_t width, const SweepKernels& kernels,
                         std::int64_t max_maxima_bytes)
    : kernels_(kernels),
      height_(height),
      width_(width),
      stride_(padded_size(width)),
      maxima_stride_(stride_ + padded_size(height)),
      max_basins_(static_cast<std::int32_t>(
          std::min<std::int64_t>(max_maxima_bytes / maxima_stride_ + 1, INT32_MAX))),
      values_(static_cast<std::size_t>(height) * stride_ + kRowPadding),
      inverted_(values_.size()),
      forest_(kernels),
      third_(stride_ + kRowPadding),
      lowest_(stride_ + kRowPadding) {}

int SegmentTree::load() {
  std::uint8_t maximum = 0;
  for (std::int32_t y = 0; y < height_; ++y) {
    const std::uint8_t* bytes = row(y);
    for (std::int32_t x = 0; x < width_; ++x) maximum = std::max(maximum, bytes[x]);
  }
  return maximum_ = maximum;
}

// Builds the forest and, for each of its basins, the column and row maxima.
bool SegmentTree::collect_maxima(const PaddedMap& map, Connectivity connectivity) {
  if (!forest_.build(map, connectivity, max_basins_)) return false;
  maxima_.assign(forest_.basins().size() * maxima_stride_ + kRowPadding, 0);
  const std::int32_t *ends = forest_.ends(), *owners = forest_.owners();
  for (std::int32_t y = 0; y < height_; ++y) {
    const std::int32_t begin = forest_.row_begin(y), num = forest_.row_begin(y + 1) - begin;
    kernels_.column_maxima(map.row(y), ends + begin, owners + begin, num, maxima_.data(),
                           maxima_stride_);
    for (std::int32_t i = begin; i < begin + num; ++i) {
      std::uint8_t& in_row = maxima(owners[i])[stride_ + y];
      in_row = std::max<std::uint8_t>(in_row, static_cast<std::uint8_t>(forest_.peak(i)));
    }
  }
  return true;
}

void SegmentTree::fold_maxima(std::int32_t basin) {
  const Basin& b = forest_.basins()[basin];
  kernels_.fold(maxima(b.elder), maxima(basin), maxima_stride_,
                static_cast<std::uint8_t>(b.weight));
}

SegmentTree::Extents SegmentTree::extents(std::int32_t basin, int low, int high) const {
  Extents e;
  const std::uint8_t *columns = maxima(basin), *rows = columns + stride_;
  kernels_.first_above(columns, width_, low, high, e.x0);
  kernels_.last_above(columns, width_, low, high, e.x1);
  kernels_.first_above(rows, height_, low, high, e.y0);
  kernels_.last_above(rows, height_, low, high, e.y1);
  return e;
}

// --- The largest contour; see level_sets.cpp for why it is one of the map with its holes filled
// ---------------------------------------------------------------------------------------------

// Raises every pixel to the smallest, over 4-connected paths out of the map, of the path's largest
// value. On the inverted map that is the highest level at which the pixel still reaches the frame.
bool SegmentTree::fill_holes() {
  std::transform(values_.begin(), values_.end(), inverted_.begin(),
                 [](std::uint8_t v) { return static_cast<std::uint8_t>(255 - v); });
  if (!forest_.build(padded(inverted_), Connectivity::kFourWithFrame, max_basins_)) {
    return false;
  }
  const std::vector<Basin>& basins = forest_.basins();
  const std::vector<std::int32_t>& merged = forest_.merged();
  std::vector<std::int32_t> reach(basins.size(), 0);
  reach[0] = SegmentForest::kFramePeak;
  for (auto b = merged.rbegin(); b != merged.rend(); ++b) {
    reach[*b] = std::min(basins[*b].weight, reach[basins[*b].elder]);
  }
  const std::int32_t *ends = forest_.ends(), *owners = forest_.owners();
  for (std::int32_t y = 0; y < height_; ++y) {
    for (std::int32_t i = forest_.row_begin(y); i < forest_.row_begin(y + 1); ++i) {
      const std::int32_t level = reach[owners[i]];
      if (forest_.peak(i) <= level) continue;
      const std::int32_t begin = i == forest_.row_begin(y) ? 0 : ends[i - 1] + 1;
      kernels_.raise(row(y), begin, ends[i], static_cast<std::uint8_t>(255 - level));
    }
  }
  return true;
}

// Each 2x2 quad adds half a pixel at its third-highest and at its lowest value to the component of
// those pixels. One of its upper two pixels, the higher one, is among the highest three; where a
// segment ends between the two, that is the right one.
void SegmentTree::collect_areas() {
  areas_.assign(forest_.basins().size() * 256, 0);
  const PaddedMap map = padded(values_);
  for (std::int32_t y = 0; y + 1 < height_; ++y) {
    kernels_.quads(map.row(y), map.row(y + 1), width_ - 1, third_.data(), lowest_.data());
    std::int32_t x = 0;
    for (std::int32_t i = forest_.row_begin(y); i < forest_.row_begin(y + 1); ++i) {
      std::int32_t* gained = &areas_[forest_.owners()[i] * std::size_t{256}];
      for (const std::int32_t end = forest_.ends()[i]; x < end; ++x) {
        ++gained[third_[x]];
        ++gained[lowest_[x]];
      }
    }
  }
}

// The component of `basin` competes at all levels of its life; then its area counts for its elder.
void SegmentTree::follow_area(std::int32_t basin) {
  const Basin& b = forest_.basins()[basin];
  std::int32_t* gained = &areas_[basin * std::size_t{256}];
  std::int32_t area = 0;
  for (int level = b.peak - 1; level >= b.weight; --level) {
    area += gained[level + 1];
    if (area < best_area_[level]) continue;
    if (area > best_area_[level] || later_first_pixel(basin, winner_[level], level)) {
      best_area_[level] = area;
      winner_[level] = basin;
    }
  }
  if (b.elder < 0) return;
  std::int32_t* elder = &areas_[b.elder * std::size_t{256}];
  for (int value = 0; value <= b.weight; ++value) elder[value] += gained[value];
  elder[b.weight] += area;
}

// Whether, at `level`, the first pixel of a's component in raster order comes after that of b's.
bool SegmentTree::later_first_pixel(std::int32_t a, std::int32_t b, int level) const {
  auto first_row = [&](std::int32_t basin) {
    std::int32_t y[kLevels];
    kernels_.first_above(maxima(basin) + stride_, height_, level, level + 1, y);
    return y[level];
  };
  const std::int32_t ya = first_row(a), yb = first_row(b);
  return ya != yb ? ya > yb : first_column(a, ya, level) > first_column(b, yb, level);
}

std::int32_t SegmentTree::first_column(std::int32_t basin, std::int32_t y, int level) const {
  std::int32_t i = forest_.row_begin(y);
  while (forest_.peak(i) <= level || forest_.holder(forest_.owners()[i], level) != basin) ++i;
  std::int32_t x = i == forest_.row_begin(y) ? 0 : forest_.ends()[i - 1] + 1;
  const std::uint8_t* bytes = padded(values_).row(y);
  while (bytes[x] <= level) ++x;
  return x;
}

bool SegmentTree::largest(Box* box_at_level) {
  if (!fill_holes()) return false;
  if (!collect_maxima(padded(values_), Connectivity::kEight)) return false;
  collect_areas();
  std::fill(best_area_, best_area_ + maximum_, -1);
  for (std::int32_t basin : forest_.merged()) {
    follow_area(basin);
    fold_maxima(basin);
  }
  const auto num_basins = static_cast<std::int32_t>(forest_.basins().size());
  for (std::int32_t basin = 0; basin < num_basins; ++basin) {
    if (forest_.basins()[basin].elder < 0) follow_area(basin);
  }
  for (int high = maximum_; high > 0;) {
    const std::int32_t basin = winner_[high - 1];
    int low = high - 1;
    while (low > 0 && winner_[low - 1] == basin) --low;
    const Extents e = extents(basin, low, high);
    for (int level = low; level < high; ++level) box_at_level[level] = e.box(level);
    high = low;
  }
  return true;
}

// --- All contours
// ---------------------------------------------------------------------------------------------

bool SegmentTree::all(std::vector<Life>* lives) {
  lives->clear();
  for (const bool holes : {false, true}) {
    if (holes) {
      std::transform(values_.begin(), values_.end(), inverted_.begin(),
                     [](std::uint8_t v) { return static_cast<std::uint8_t>(255 - v); });
    }
    if (!collect_maxima(padded(holes ? inverted_ : values_),
                        holes ? Connectivity::kFourWithFrame : Connectivity::kEight)) {
      return false;
    }
    for (std::int32_t basin : forest_.merged()) {
      end_life(basin, holes, lives);
      fold_maxima(basin);
    }
    const auto num_basins = static_cast<std::int32_t>(forest_.basins().size());
    for (std::int32_t basin = holes ? 1 : 0; basin < num_basins; ++basin) {
      if (forest_.basins()[basin].elder < 0) end_life(basin, holes, lives);
    }
  }
  return true;
}

// Appends the boxes of a basin's component. Level L of the inverted map is level 254 - L of the
// map; the border of a hole runs through the pixels around it.
void SegmentTree::end_life(std::int32_t basin, bool holes, std::vector<Life>* lives) const {
  const Basin& b = forest_.basins()[basin];
  const int low = holes ? std::max(b.weight, 255 - maximum_) : b.weight;
  if (low >= b.peak) return;
  const Extents e = extents(basin, low, b.peak);
  for (int high = b.peak - 1; high >= low;) {
    const Box box = e.box(high);
    int last = high;
    while (last > low && e.box(last - 1) == box) --last;
    if (holes) {
      lives->push_back({{box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1}, 254 - high, 254 - last});
    } else {
      lives->push_back({box, last, high});
    }
    high = last - 1;
  }
}

}  // namespace cba
