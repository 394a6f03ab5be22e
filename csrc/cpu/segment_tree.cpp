#include "cpu/segment_tree.h"

#include <algorithm>
#include <numeric>

namespace cba {
namespace {

std::int32_t padded_size(std::int32_t n) {
  return (n + kRowPadding - 1) / kRowPadding * kRowPadding;
}

// With more basins LevelSets is faster: on upsampled random maps of 56 to 896 pixels the two take
// the same time at 12 to 20 pixels per basin. On large maps the maxima of so many basins would not
// fit into memory.
std::int32_t most_basins(std::int32_t height, std::int32_t width, std::int64_t bytes_per_basin) {
  const std::int64_t pixels = std::int64_t{height} * width;
  return static_cast<std::int32_t>(1 + std::min(pixels / 20, 64 * pixels / bytes_per_basin));
}

// Counts the values of n quads. Neighbors are often equal, and a counter that is raised twice in
// succession waits for its own store, 5 cycles or more. So four distant places are counted in turn.
void count_quads(const std::uint8_t* third, const std::uint8_t* lowest, std::int32_t n,
                 std::int32_t* counts) {
  const std::int32_t quarter = n / 4;
  for (std::int32_t x = 0; x < quarter; ++x) {
    for (std::int32_t part = 0; part < 4; ++part) {
      ++counts[third[x + part * quarter]];
      ++counts[lowest[x + part * quarter]];
    }
  }
  for (std::int32_t x = 4 * quarter; x < n; ++x) {
    ++counts[third[x]];
    ++counts[lowest[x]];
  }
}

}  // namespace

SegmentTree::SegmentTree(std::int32_t height, std::int32_t width, const SweepKernels& kernels,
                         bool any_map)
    : kernels_(kernels),
      height_(height),
      width_(width),
      stride_(padded_size(width)),
      maxima_stride_(stride_ + padded_size(height)),
      max_basins_(any_map ? INT32_MAX : most_basins(height, width, maxima_stride_)),
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

void SegmentTree::invert() {
  std::transform(values_.begin(), values_.end(), inverted_.begin(),
                 [](std::uint8_t v) { return static_cast<std::uint8_t>(255 - v); });
}

// Calls f(basin) for every basin but the frame, elders before those that merge into them.
template <class F>
void SegmentTree::for_each_life(F&& f) const {
  const std::vector<Basin>& basins = forest_.basins();
  const auto num_basins = static_cast<std::int32_t>(basins.size());
  for (std::int32_t basin = 0; basin < num_basins; ++basin) {
    if (basins[basin].elder < 0 && basins[basin].peak != SegmentForest::kFramePeak) f(basin);
  }
  const std::vector<std::int32_t>& merged = forest_.merged();
  for (auto basin = merged.rbegin(); basin != merged.rend(); ++basin) f(*basin);
}

// Builds the forest and, for each of its basins, the column and row maxima.
bool SegmentTree::collect_maxima(const PaddedMap& map, Connectivity connectivity) {
  if (!forest_.build(map, connectivity, max_basins_)) return false;
  maxima_.assign(forest_.basins().size() * maxima_stride_ + kRowPadding, 0);
  hull_.assign(forest_.basins().size(), {width_, height_, -1, -1});
  const std::int32_t *ends = forest_.ends(), *owners = forest_.owners();
  for (std::int32_t y = 0; y < height_; ++y) {
    const std::int32_t begin = forest_.row_begin(y), num = forest_.row_begin(y + 1) - begin;
    kernels_.column_maxima(map.row(y), ends + begin, owners + begin, num, maxima_.data(),
                           maxima_stride_);
    std::int32_t x = 0;
    for (std::int32_t i = begin; i < begin + num; ++i) {
      const std::int32_t basin = owners[i];
      std::uint8_t& in_row = maxima(basin)[stride_ + y];
      in_row = std::max<std::uint8_t>(in_row, static_cast<std::uint8_t>(forest_.peak(i)));
      if (forest_.peak(i) > 0) hull_[basin] = hull(hull_[basin], {x, y, ends[i], y});
      x = ends[i] + 1;
    }
  }
  return true;
}

void SegmentTree::fold_maxima(std::int32_t basin) {
  const Basin& b = forest_.basins()[basin];
  const Box& h = hull_[basin];
  const auto cap = static_cast<std::uint8_t>(b.weight);
  kernels_.fold(maxima(b.elder), maxima(basin), h.x0, h.x1, cap);
  kernels_.fold(maxima(b.elder) + stride_, maxima(basin) + stride_, h.y0, h.y1, cap);
  hull_[b.elder] = hull(hull_[b.elder], h);
}

void SegmentTree::find_extents(std::int32_t basin, int low, int high, Extents* e) const {
  const std::uint8_t *columns = maxima(basin), *rows = columns + stride_;
  const Box& h = hull_[basin];
  kernels_.first_above(columns, h.x0, h.x1, low, high, e->x0);
  kernels_.last_above(columns, h.x0, h.x1, low, high, e->x1);
  find_first_rows(basin, low, high, e->y0);
  kernels_.last_above(rows, h.y0, h.y1, low, high, e->y1);
}

// The largest contour; level_sets.cpp explains why it is one of the map with its holes filled.

// Raises every pixel to the smallest maximum of a 4-connected path from it out of the map. On the
// inverted map that is the highest level at which the pixel is still connected to the frame.
bool SegmentTree::fill_holes() {
  invert();
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
// those pixels. The higher one of its upper two pixels is among the highest three. If a segment
// ends between the two, it is the one with that pixel. Values up to `floor` are left out where that
// costs nothing.
void SegmentTree::collect_areas(int floor) {
  areas_.assign(forest_.basins().size() * 256, 0);
  const PaddedMap map = padded(values_);
  for (std::int32_t y = 0; y + 1 < height_; ++y) {
    bool quads_are_known = false;
    std::int32_t x = 0;
    for (std::int32_t i = forest_.row_begin(y); i < forest_.row_begin(y + 1); ++i) {
      const std::int32_t begin = x, end = x = forest_.ends()[i];
      if (forest_.peak(i) <= floor) continue;
      if (!quads_are_known) {
        kernels_.quads(map.row(y), map.row(y + 1), width_ - 1, third_.data(), lowest_.data());
        quads_are_known = true;
      }
      count_quads(&third_[begin], &lowest_[begin], end - begin,
                  &areas_[forest_.owners()[i] * std::size_t{256}]);
    }
  }
}

// Below this level there is only one component, so that areas need not be compared.
int SegmentTree::lowest_contested_level() const {
  const std::vector<Basin>& basins = forest_.basins();
  const auto stays = [](const Basin& b) { return b.elder < 0 && b.peak > 0; };
  if (std::count_if(basins.begin(), basins.end(), stays) > 1) return 0;
  int lowest = maximum_;
  for (std::int32_t basin : forest_.merged()) {
    if (basins[basin].weight < basins[basin].peak) lowest = std::min(lowest, basins[basin].weight);
  }
  return lowest;
}

// Adds the area of `basin` to its elder at the levels at which the elder contains it.
void SegmentTree::fold_area(std::int32_t basin) {
  const Basin& b = forest_.basins()[basin];
  const std::int32_t* gained = &areas_[basin * std::size_t{256}];
  std::int32_t* elder = &areas_[b.elder * std::size_t{256}];
  for (int value = 0; value < b.weight; ++value) elder[value] += gained[value];
  elder[b.weight] += std::accumulate(gained + b.weight, gained + b.peak + 1, 0);
}

// Compares the component of `basin` with the largest so far at all levels of its life. Among equal
// areas the one wins whose first pixel comes last in raster order; first pixels are looked up only
// if areas are equal.
void SegmentTree::compete(std::int32_t basin) {
  const Basin& b = forest_.basins()[basin];
  const std::int32_t* gained = &areas_[basin * std::size_t{256}];
  std::int32_t first_row[kLevels];
  bool rows_are_known = false;
  std::int32_t area = 0;
  for (int level = b.peak - 1; level >= b.weight; --level) {
    area += gained[level + 1];
    Winner& best = winners_[level];
    if (area < best.area) continue;
    if (area > best.area) {
      best = {basin, area, kUnknown};
      continue;
    }
    if (!rows_are_known) find_first_rows(basin, b.weight, b.peak, first_row);
    rows_are_known = true;
    if (best.first_row == kUnknown) {
      std::int32_t row[kLevels];
      find_first_rows(best.basin, level, level + 1, row);
      best.first_row = row[level];
    }
    const std::int32_t y = first_row[level];
    if (y > best.first_row ||
        (y == best.first_row && starts_further_right(basin, best.basin, y, level))) {
      best = {basin, area, y};
    }
  }
}

// Compares the first pixels of two components that both start in row y. If the basins lie side by
// side, no pixels are read: 3,000 dots of equal area are compared a million times.
bool SegmentTree::starts_further_right(std::int32_t a, std::int32_t b, std::int32_t y,
                                       int level) const {
  if (hull_[a].x1 < hull_[b].x0) return false;
  return hull_[a].x0 > hull_[b].x1 || first_column(a, y, level) > first_column(b, y, level);
}

void SegmentTree::find_first_rows(std::int32_t basin, int low, int high, std::int32_t* at) const {
  kernels_.first_above(maxima(basin) + stride_, hull_[basin].y0, hull_[basin].y1, low, high, at);
}

// The first column in row y of the component that `basin` has at `level`.
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
  collect_areas(lowest_contested_level());
  std::fill(winners_, winners_ + maximum_, Winner{-1, -1, kUnknown});
  for (std::int32_t basin : forest_.merged()) {
    fold_area(basin);
    fold_maxima(basin);
  }
  // Elders, which are large, come first, so that few of the others come close.
  for_each_life([&](std::int32_t basin) { compete(basin); });
  Extents e;
  for (int high = maximum_; high > 0;) {
    const std::int32_t basin = winners_[high - 1].basin;
    int low = high - 1;
    while (low > 0 && winners_[low - 1].basin == basin) --low;
    find_extents(basin, low, high, &e);
    for (int level = low; level < high; ++level) box_at_level[level] = e.box(level);
    high = low;
  }
  return true;
}

bool SegmentTree::contours(bool of_holes, LifeSink& sink) {
  if (of_holes) invert();
  if (!collect_maxima(padded(of_holes ? inverted_ : values_),
                      of_holes ? Connectivity::kFourWithFrame : Connectivity::kEight)) {
    return false;
  }
  for (std::int32_t basin : forest_.merged()) fold_maxima(basin);
  for_each_life([&](std::int32_t basin) { end_life(basin, of_holes, sink); });
  return true;
}

// Passes the boxes of a basin's component to the sink. Level L of the inverted map is level 254 - L
// of the map. The border of a hole consists of the pixels around it.
void SegmentTree::end_life(std::int32_t basin, bool holes, LifeSink& sink) const {
  const Basin& b = forest_.basins()[basin];
  const int low = holes ? std::max(b.weight, 255 - maximum_) : b.weight;
  if (low >= b.peak) return;
  const std::int32_t border = holes ? 1 : 0;
  Extents e;
  const auto box_at = [&](int level) {
    return Box{e.x0[level] - border, e.y0[level] - border, e.x1[level] + border,
               e.y1[level] + border};
  };
  const auto life = [&](const Box& box, int lowest, int highest) {
    return holes ? Life{box, 254 - highest, 254 - lowest} : Life{box, lowest, highest};
  };
  find_extents(basin, low, low + 1, &e);
  const Life whole = life(box_at(low), low, b.peak - 1);
  if (!sink.wants(whole)) return;
  find_extents(basin, low, b.peak, &e);
  for (int high = b.peak - 1; high >= low;) {
    const Box box = box_at(high);
    int last = high;
    while (last > low && box_at(last - 1) == box) --last;
    sink.add(life(box, last, high));
    high = last - 1;
  }
}

}  // namespace cba
