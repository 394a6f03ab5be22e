// The components of all level sets {map > L} of a byte map, as a tree of basins that merge.
//
// Each row is cut into segments on which the values first rise and then fall, so that the part of a
// segment above any level is one run of pixels. A segment whose highest pixels touch a higher or
// equal segment of a neighboring row is never a component of its own and becomes part of that one.
// The remaining segments are the basins; a smooth map has few. Two basins join at the highest level
// at which they touch (Kruskal's algorithm with a counting sort). The one with the lower peak ends
// there, and the other, its elder, goes on.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/sweep_kernels.h"

namespace cba {

enum class Connectivity {
  kEight,          // for the foreground
  kFourWithFrame,  // for the background; basin 0 surrounds the map and is higher than all of it
};

// Pixel (x, y) is bytes[y * stride + x]; rows are padded as sweep_kernels.h says.
struct PaddedMap {
  const std::uint8_t* bytes;
  std::int32_t height, width, stride;
  const std::uint8_t* row(std::int32_t y) const {
    return bytes + static_cast<std::int64_t>(y) * stride;
  }
};

// A basin's component exists at the levels weight .. peak - 1: it touches no basin with a higher
// peak there. `elder` is the basin that it joins at `weight`, or -1.
struct Basin {
  std::int32_t peak;
  std::int32_t weight = 0;
  std::int32_t elder = -1;
};

class SegmentForest {
 public:
  static constexpr std::int32_t kFramePeak = 256;

  explicit SegmentForest(const SweepKernels& kernels) : kernels_(kernels) {}

  // Finds the basins of a map. Returns false if there are more than `max_basins`; the other members
  // are then undefined.
  bool build(const PaddedMap& map, Connectivity connectivity, std::int32_t max_basins);

  const std::vector<Basin>& basins() const { return basins_; }
  // The basins that have an elder, by falling weight.
  const std::vector<std::int32_t>& merged() const { return merged_; }

  // The segments of row y are row_begin(y) .. row_begin(y + 1) - 1, from left to right.
  std::int32_t row_begin(std::int32_t y) const { return row_begin_[y]; }
  const std::int32_t* ends() const { return end_.data(); }     // last column of a segment
  const std::int32_t* owners() const { return part_.data(); }  // basin of a segment
  std::int32_t peak(std::int32_t segment) const { return peak_[segment]; }

  // The basin whose component holds the pixels above `level` of `basin`.
  std::int32_t holder(std::int32_t basin, std::int32_t level) const {
    while (basins_[basin].weight > level) basin = basins_[basin].elder;
    return basin;
  }

 private:
  struct Edge {
    std::int32_t a, b, weight;
  };

  void start(const PaddedMap& map, Connectivity connectivity);
  void cut_row(const PaddedMap& map, std::int32_t y);
  void touch_rows(const PaddedMap& map, std::int32_t y, bool diagonals);
  void touch_diagonals(const PaddedMap& map, std::int32_t y);
  void touch_frame(const PaddedMap& map);
  void touch(std::int32_t earlier, std::int32_t later, std::int32_t weight);
  void reserve_edges(std::int32_t width);
  void find_basins();
  void sort_edges();
  void merge_basins();

  const SweepKernels& kernels_;
  std::int32_t num_segments_ = 0, num_parts_ = 0;
  std::vector<std::int32_t> row_begin_, end_, peak_;
  // While rows are read: the segment that this one is part of, or itself. Afterwards: its basin.
  std::vector<std::int32_t> part_;
  std::size_t num_edges_ = 0;
  std::vector<Edge> edges_, sorted_;  // num_edges_ of edges_ count
  std::vector<Basin> basins_;
  std::vector<std::int32_t> merged_, root_;
  std::vector<std::uint64_t> rises_, falls_, saddles_;
};

}  // namespace cba
