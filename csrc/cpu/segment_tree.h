// Contours of the level sets of a byte map by a tree of row segments. The results are those of
// LevelSets, found many times faster if the map has few basins.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/level_sets.h"
#include "cpu/segment_forest.h"
#include "cpu/sweep_kernels.h"

namespace cba {

// Scratch memory and results for maps of one size; one object per thread.
class SegmentTree {
 public:
  // `any_map` accepts maps with any number of basins, although LevelSets is faster for many.
  SegmentTree(std::int32_t height, std::int32_t width, const SweepKernels& kernels, bool any_map);

  // Where to write pixel (0, y) of the next map.
  std::uint8_t* row(std::int32_t y) {
    return values_.data() + static_cast<std::int64_t>(y) * stride_;
  }
  // Must be called after the map is written. Returns its largest value.
  int load();
  int maximum() const { return maximum_; }

  // Like those of LevelSets, for a map with maximum() > 0. Both return false, without results, if
  // the map has too many basins for this method.
  bool largest(Box* box_at_level);
  bool contours(bool of_holes, LifeSink& sink);

 private:
  // Where the component of a basin begins and ends at each of its levels.
  struct Extents {
    std::int32_t x0[kLevels], x1[kLevels], y0[kLevels], y1[kLevels];
    Box box(int level) const { return {x0[level], y0[level], x1[level], y1[level]}; }
  };

  // The largest contour of a level so far.
  static constexpr std::int32_t kUnknown = -1;
  struct Winner {
    std::int32_t basin, area, first_row;
  };

  PaddedMap padded(const std::vector<std::uint8_t>& bytes) const {
    return {bytes.data(), height_, width_, stride_};
  }
  void invert();
  template <class F>
  void for_each_life(F&& f) const;
  bool fill_holes();
  bool collect_maxima(const PaddedMap& map, Connectivity connectivity);
  void fold_maxima(std::int32_t basin);
  void find_extents(std::int32_t basin, int low, int high, Extents* e) const;
  int lowest_contested_level() const;
  void collect_areas(int floor);
  void fold_area(std::int32_t basin);
  void compete(std::int32_t basin);
  void find_first_rows(std::int32_t basin, int low, int high, std::int32_t* at) const;
  bool starts_further_right(std::int32_t a, std::int32_t b, std::int32_t y, int level) const;
  std::int32_t first_column(std::int32_t basin, std::int32_t y, int level) const;
  void end_life(std::int32_t basin, bool holes, LifeSink& sink) const;
  std::uint8_t* maxima(std::int32_t basin) { return maxima_.data() + basin * maxima_stride_; }
  const std::uint8_t* maxima(std::int32_t basin) const {
    return maxima_.data() + basin * maxima_stride_;
  }

  const SweepKernels& kernels_;
  std::int32_t height_, width_, stride_;
  std::int64_t maxima_stride_;
  std::int32_t max_basins_;
  int maximum_ = 0;
  std::vector<std::uint8_t> values_, inverted_;  // [height_, stride_] and padding
  SegmentForest forest_;
  // For each basin the largest value in each column [stride_], then in each row, with padding.
  // Values of a merged basin count for its elder up to the weight of their merge. So at any level
  // of the elder's life, values above it belong to its component.
  std::vector<std::uint8_t> maxima_;
  std::vector<Box> hull_;                     // hull of the nonzero segments of each basin
  std::vector<std::int32_t> areas_;           // [basin, 256]: doubled area gained at each value
  std::vector<std::uint8_t> third_, lowest_;  // [stride_]: of the quads of a row
  Winner winners_[kLevels];
};

}  // namespace cba
