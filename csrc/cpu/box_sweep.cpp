#include "cpu/box_sweep.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <tuple>

#include "common/checks.h"
#include "common/parallel_for.h"
#include "cpu/quantize_kernels.h"
#include "cpu/segment_tree.h"
#include "cpu/sweep_kernels.h"

namespace cba {
namespace {

constexpr Box kNoContour = {0, 0, 0, 0};

// A map of zeros has no level; the tables below have an entry for level 0 all the same.
std::int32_t level_of(double threshold, int maximum) {
  return static_cast<std::int32_t>(threshold * maximum);
}

Box official_box(const Box& b, const Maps& maps) {
  return {b.x0, b.y0, std::min<std::int32_t>(b.x1 + 1, static_cast<std::int32_t>(maps.width) - 1),
          std::min<std::int32_t>(b.y1 + 1, static_cast<std::int32_t>(maps.height) - 1)};
}

// Reads maps and finds their contours, by segments or by pixels; one object per thread.
class MapSweep {
 public:
  MapSweep(const Maps& maps, const SweepOptions& options)
      : isa_(options.isa),
        method_(options.method),
        quantizers_(kernels_for<QuantizeKernels>(options.isa)),
        height_(static_cast<std::int32_t>(maps.height)),
        width_(static_cast<std::int32_t>(maps.width)),
        tree_(height_, width_, kernels_for<SweepKernels>(options.isa),
              options.method == Method::kSegments) {}

  bool fits(const Maps& maps, const SweepOptions& options) const {
    return height_ == maps.height && width_ == maps.width && isa_ == options.isa &&
           method_ == options.method;
  }

  // Returns the index of the first value of the map that cannot be quantized, or -1.
  std::int64_t load(const Maps& maps, std::int64_t map) {
    for (std::int32_t y = 0; y < height_; ++y) {
      const std::int64_t first = (map * height_ + y) * width_;
      const std::int64_t bad = read_row(maps, first, tree_.row(y));
      if (bad >= 0) return first + bad;
    }
    tree_.load();
    return -1;
  }

  int maximum() const { return tree_.maximum(); }

  void largest(Box* box_at_level) {
    if (method_ == Method::kPixels || !tree_.largest(box_at_level)) {
      loaded_pixels().largest(box_at_level);
    }
  }

  void all(LifeSink& sink) {
    for (const bool of_holes : {false, true}) {
      if (method_ == Method::kPixels || !tree_.contours(of_holes, sink)) {
        loaded_pixels().contours(of_holes, sink);
      }
    }
  }

 private:
  std::int64_t read_row(const Maps& maps, std::int64_t first, std::uint8_t* bytes) const {
    switch (maps.type) {
      case DType::kFloat32:
        return quantizers_.float32(static_cast<const float*>(maps.values) + first, bytes, width_);
      case DType::kFloat64:
        return quantizers_.float64(static_cast<const double*>(maps.values) + first, bytes, width_);
      default:
        std::memcpy(bytes, static_cast<const std::uint8_t*>(maps.values) + first, width_);
        return -1;
    }
  }

  LevelSets& loaded_pixels() {
    if (!pixels_) pixels_ = std::make_unique<LevelSets>(height_, width_);
    pixels_->load(tree_.row(0), tree_.row(1) - tree_.row(0));
    return *pixels_;
  }

  Isa isa_;
  Method method_;
  const QuantizeKernels& quantizers_;
  std::int32_t height_, width_;
  SegmentTree tree_;
  std::unique_ptr<LevelSets> pixels_;  // made when the first map needs it
};

// Maps with more pixels leave no scratch memory behind: for noise it has 100 bytes for each pixel.
constexpr std::int64_t kMostKept = std::int64_t{1} << 18;

// Returns a sweep for maps of this size. Each thread keeps its last one, because memory that is
// given back comes again as pages that the system must clear first, which takes as long as the
// sweep of a small map.
std::unique_ptr<MapSweep>& thread_sweep(const Maps& maps, const SweepOptions& options) {
  thread_local std::unique_ptr<MapSweep> kept;
  if (!kept || !kept->fits(maps, options)) {
    kept.reset();
    kept = std::make_unique<MapSweep>(maps, options);
  }
  return kept;
}

// Calls f(map index, MapSweep with that map) for every map before the first one that cannot be
// quantized, and perhaps for later ones. Returns the index of the first bad value, or -1.
template <class F>
std::int64_t for_each_map(const Maps& maps, const SweepOptions& options, F&& f) {
  require(maps.num == 0 || (maps.height >= 1 && maps.width >= 1 &&
                            (maps.height + 2) * (maps.width + 2) < kMaxPixels),
          "maps of " + std::to_string(maps.height) + " x " + std::to_string(maps.width) +
              " pixels cannot be swept");
  FirstIndex first_bad;
  parallel_for(maps.num, options.num_threads, [&](std::int64_t begin, std::int64_t end) {
    std::unique_ptr<MapSweep>& sweep = thread_sweep(maps, options);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t bad = sweep->load(maps, i);
      if (bad < 0) {
        f(i, *sweep);
        continue;
      }
      first_bad.note(bad);
      break;  // a later map of the range cannot hold the first bad value
    }
    if (maps.height * maps.width > kMostKept) sweep.reset();
  });
  return first_bad.get();
}

using BoxTable = std::array<Box, kLevels>;

void largest_by_level(const Maps& maps, MapSweep& sweep, BoxTable& table) {
  table[0] = kNoContour;
  if (sweep.maximum() == 0) return;
  sweep.largest(table.data());
  for (int level = 0; level < sweep.maximum(); ++level) {
    table[level] = official_box(table[level], maps);
  }
}

std::int64_t area_of(const std::int64_t* b) { return (b[2] - b[0] + 1) * (b[3] - b[1] + 1); }

std::int64_t intersection(const Box& a, const std::int64_t* b) {
  const std::int64_t width =
      std::min<std::int64_t>(a.x1, b[2]) - std::max<std::int64_t>(a.x0, b[0]);
  const std::int64_t height =
      std::min<std::int64_t>(a.y1, b[3]) - std::max<std::int64_t>(a.y0, b[1]);
  return std::max<std::int64_t>(0, width + 1) * std::max<std::int64_t>(0, height + 1);
}

// Intersection over union of boxes with inclusive corners, in double, as the official evaluator
// computes it.
double iou_of(const Box& a, const std::int64_t* b) {
  const std::int64_t both = intersection(a, b);
  const std::int64_t area_a = std::int64_t{a.x1 - a.x0 + 1} * (a.y1 - a.y0 + 1);
  return static_cast<double>(both) / static_cast<double>(area_a + area_of(b) - both);
}

double best_of(const Box& box, const GroundTruth& truth, std::int64_t map) {
  double best = 0.0;
  for (std::int64_t g = truth.offsets[map]; g < truth.offsets[map + 1]; ++g) {
    best = std::max(best, iou_of(box, truth.boxes + 4 * g));
  }
  return best;
}

using LevelIous = std::array<double, kLevels>;

// Raises the IoU at each level of a map to that of its contours.
class IouSink : public LifeSink {
 public:
  IouSink(const Maps& maps, const GroundTruth& truth, std::int64_t map, LevelIous* best)
      : maps_(maps), truth_(truth), map_(map), best_(*best) {}

  // A box inside the whole one intersects a true box at most as much as the whole one does, and
  // their union is at least the true box. Conversion and division round monotonically, so that this
  // bound also holds for the rounded IoU.
  bool wants(const Life& whole) const override {
    const Box box = official_box(whole.box, maps_);
    double bound = 0.0;
    for (std::int64_t g = truth_.offsets[map_]; g < truth_.offsets[map_ + 1]; ++g) {
      const std::int64_t* b = truth_.boxes + 4 * g;
      bound = std::max(bound,
                       static_cast<double>(intersection(box, b)) / static_cast<double>(area_of(b)));
    }
    const double* best = best_.data();
    return std::any_of(best + whole.lowest, best + whole.highest + 1,
                       [=](double v) { return v < bound; });
  }

  void add(const Life& life) override {
    const double value = best_of(official_box(life.box, maps_), truth_, map_);
    for (std::int32_t level = life.lowest; level <= life.highest; ++level) {
      best_[level] = std::max(best_[level], value);
    }
  }

 private:
  const Maps& maps_;
  const GroundTruth& truth_;
  const std::int64_t map_;
  LevelIous& best_;
};

// Collects the boxes of all contours at the levels that are needed.
class TableSink : public LifeSink {
 public:
  TableSink(const Maps& maps, const std::vector<bool>& needed, std::vector<std::vector<Box>>* boxes)
      : maps_(maps), needed_(needed), boxes_(*boxes) {}

  bool wants(const Life&) const override { return true; }

  void add(const Life& life) override {
    for (std::int32_t level = life.lowest; level <= life.highest; ++level) {
      if (needed_[level]) boxes_[level].push_back(official_box(life.box, maps_));
    }
  }

 private:
  const Maps& maps_;
  const std::vector<bool>& needed_;
  std::vector<std::vector<Box>>& boxes_;
};

}  // namespace

std::int64_t largest_boxes(const Maps& maps, const Thresholds& thresholds, std::int32_t* boxes,
                           const SweepOptions& options) {
  return for_each_map(maps, options, [&](std::int64_t map, MapSweep& sweep) {
    BoxTable table;
    largest_by_level(maps, sweep, table);
    std::int32_t* out = boxes + map * thresholds.num * 4;
    for (std::int64_t t = 0; t < thresholds.num; ++t, out += 4) {
      const Box& box = table[level_of(thresholds.values[t], sweep.maximum())];
      out[0] = box.x0;
      out[1] = box.y0;
      out[2] = box.x1;
      out[3] = box.y1;
    }
  });
}

AllBoxes::AllBoxes(const Maps& maps, const Thresholds& thresholds, const SweepOptions& options)
    : boxes_(maps.num), levels_(maps.num * thresholds.num), offsets_(levels_.size() + 1) {
  first_bad_ = for_each_map(maps, options, [&](std::int64_t map, MapSweep& sweep) {
    BoxesAtLevel& at = boxes_[map];
    at.resize(std::max(sweep.maximum(), 1));
    std::vector<bool> needed(at.size());
    for (std::int64_t t = 0; t < thresholds.num; ++t) {
      const std::int32_t level = level_of(thresholds.values[t], sweep.maximum());
      levels_[map * thresholds.num + t] = level;
      needed[level] = true;
    }
    if (sweep.maximum() == 0) {
      at[0] = {kNoContour};
      return;
    }
    TableSink sink(maps, needed, &at);
    sweep.all(sink);
    for (std::vector<Box>& boxes : at) {
      std::sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) {
        return std::tie(a.x0, a.y0, a.x1, a.y1) < std::tie(b.x0, b.y0, b.x1, b.y1);
      });
    }
  });
  if (first_bad_ >= 0) return;
  for (std::size_t i = 0; i < levels_.size(); ++i) {
    const BoxesAtLevel& at = boxes_[i / thresholds.num];
    offsets_[i + 1] = offsets_[i] + static_cast<std::int64_t>(at[levels_[i]].size());
  }
}

void AllBoxes::write(std::int32_t* boxes, std::int64_t* offsets, int num_threads) const {
  std::copy(offsets_.begin(), offsets_.end(), offsets);
  if (levels_.empty()) return;
  const std::int64_t num_thresholds = static_cast<std::int64_t>(levels_.size() / boxes_.size());
  parallel_for(levels_.size(), num_threads, [&](std::int64_t begin, std::int64_t end) {
    std::int32_t* out = boxes + offsets_[begin] * 4;
    for (std::int64_t i = begin; i < end; ++i) {
      for (const Box& box : boxes_[i / num_thresholds][levels_[i]]) {
        *out++ = box.x0;
        *out++ = box.y0;
        *out++ = box.x1;
        *out++ = box.y1;
      }
    }
  });
}

std::int64_t best_iou(const Maps& maps, const Thresholds& thresholds, const GroundTruth& truth,
                      bool all_contours, double* iou, const SweepOptions& options) {
  return for_each_map(maps, options, [&](std::int64_t map, MapSweep& sweep) {
    LevelIous best{};
    if (all_contours && sweep.maximum() > 0) {
      IouSink sink(maps, truth, map, &best);
      sweep.all(sink);
    } else {
      BoxTable table;
      largest_by_level(maps, sweep, table);
      for (int level = 0; level < std::max(sweep.maximum(), 1); ++level) {
        best[level] = best_of(table[level], truth, map);
      }
    }
    double* out = iou + map * thresholds.num;
    for (std::int64_t t = 0; t < thresholds.num; ++t) {
      out[t] = best[level_of(thresholds.values[t], sweep.maximum())];
    }
  });
}

}  // namespace cba
