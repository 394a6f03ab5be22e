// Boxes of thresholded maps, and their IoU with ground truth, for all thresholds of a batch.
//
// Threshold t of map u is the mask u > int(t * max u), the product in double. The box of a contour
// with inclusive corners x0, y0, x1, y1 is x0, y0, min(x1 + 1, width - 1), min(y1 + 1, height - 1);
// a mask without contour has the box 0, 0, 0, 0.
#pragma once

#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/level_sets.h"

namespace cba {

// Maps with so many pixels, border included, are refused, because twice an area must fit 31 bits.
constexpr std::int64_t kMaxPixels = std::int64_t{1} << 30;

struct Maps {
  const void* values;  // [num, height, width]
  DType type;          // uint8: u itself; float32 and float64: quantized as they are read
  std::int64_t num;
  std::int64_t height, width;
};

struct Thresholds {
  const double* values;  // [num], each in [0, 1)
  std::int64_t num;
};

// The true boxes of map i are boxes[offsets[i] .. offsets[i + 1]), each x0, y0, x1, y1.
struct GroundTruth {
  const std::int64_t* boxes;    // [offsets[num], 4]
  const std::int64_t* offsets;  // [num + 1]
};

// How the contours of a map are found; all methods give the same results.
enum class Method {
  kAuto,      // segments where the map has few basins, else pixels
  kSegments,  // SegmentTree
  kPixels,    // LevelSets
};

struct SweepOptions {
  Isa isa;
  Method method;
  int num_threads;
};

// The two functions return the index of the first value that is NaN or outside [0, 1], or -1;
// AllBoxes has it as first_bad(). With such a value the results are undefined.

// Writes the box of the contour of largest area: boxes [num maps, num thresholds, 4].
std::int64_t largest_boxes(const Maps& maps, const Thresholds& thresholds, std::int32_t* boxes,
                           const SweepOptions& options);

// Writes the best IoU between an estimated and a ground-truth box: iou [num maps, num thresholds].
std::int64_t best_iou(const Maps& maps, const Thresholds& thresholds, const GroundTruth& truth,
                      bool all_contours, double* iou, const SweepOptions& options);

// The boxes of all contours; those of one map and threshold are sorted by x0, y0, x1, y1.
class AllBoxes {
 public:
  AllBoxes(const Maps& maps, const Thresholds& thresholds, const SweepOptions& options);

  std::int64_t first_bad() const { return first_bad_; }
  std::int64_t num_boxes() const { return offsets_.back(); }
  std::int64_t num_offsets() const { return static_cast<std::int64_t>(offsets_.size()); }

  // Writes boxes [num_boxes, 4] and offsets [num maps * num thresholds + 1]: the boxes of map i at
  // threshold j begin at offsets[i * num thresholds + j] and end before the next offset.
  void write(std::int32_t* boxes, std::int64_t* offsets, int num_threads) const;

 private:
  using BoxesAtLevel = std::vector<std::vector<Box>>;
  std::vector<BoxesAtLevel> boxes_;   // [num maps][level], filled where a threshold needs it
  std::vector<std::int32_t> levels_;  // [num maps * num thresholds]
  std::vector<std::int64_t> offsets_;
  std::int64_t first_bad_;
};

}  // namespace cba
