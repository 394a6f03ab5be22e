#include "cpu/box_sweep.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "common/checks.h"
#include "common/parallel_for.h"

namespace cba {
namespace {

constexpr Box kNoContour = {0, 0, 0, 0};

// A map of zeros has no level; its only entry in the tables below is that of level 0.
std::int32_t level_of(double threshold, int maximum) {
  return static_cast<std::int32_t>(threshold * maximum);
}

Box official_box(const Box& b, const Maps& maps) {
  return {b.x0, b.y0, std::min<std::int32_t>(b.x1 + 1, static_cast<std::int32_t>(maps.width) - 1),
          std::min<std::int32_t>(b.y1 + 1, static_cast<std::int32_t>(maps.height) - 1)};
}

// Calls f(map index, LevelSets with that map) for every map.
template <class F>
void for_each_map(const Maps& maps, int num_threads, F&& f) {
  require(maps.num == 0 || (maps.height >= 1 && maps.width >= 1 &&
                            (maps.height + 2) * (maps.width + 2) < kMaxPixels),
          "maps of " + std::to_string(maps.height) + " x " + std::to_string(maps.width) +
              " pixels cannot be swept");
  parallel_for(maps.num, num_threads, [&](std::int64_t begin, std::int64_t end) {
    LevelSets sets(static_cast<std::int32_t>(maps.height), static_cast<std::int32_t>(maps.width));
    for (std::int64_t i = begin; i < end; ++i) {
      sets.load(maps.bytes + i * maps.height * maps.width);
      f(i, sets);
    }
  });
}

using BoxTable = std::array<Box, kLevels>;

void largest_by_level(const Maps& maps, LevelSets& sets, BoxTable& table) {
  table[0] = kNoContour;
  if (sets.maximum() == 0) return;
  sets.largest(table.data());
  for (int level = 0; level < sets.maximum(); ++level) {
    table[level] = official_box(table[level], maps);
  }
}

// Intersection over union of boxes with inclusive corners, in double, as the official evaluator
// computes it; `best` is raised to it.
void raise_to_iou(const Box& a, const std::int64_t* b, double& best) {
  const std::int64_t width =
      std::min<std::int64_t>(a.x1, b[2]) - std::max<std::int64_t>(a.x0, b[0]);
  const std::int64_t height =
      std::min<std::int64_t>(a.y1, b[3]) - std::max<std::int64_t>(a.y0, b[1]);
  const std::int64_t both =
      std::max<std::int64_t>(0, width + 1) * std::max<std::int64_t>(0, height + 1);
  const std::int64_t area_a = std::int64_t{a.x1 - a.x0 + 1} * (a.y1 - a.y0 + 1);
  const std::int64_t area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1);
  const double iou = static_cast<double>(both) / static_cast<double>(area_a + area_b - both);
  best = std::max(best, iou);
}

double best_of(const Box& box, const GroundTruth& truth, std::int64_t map) {
  double best = 0.0;
  for (std::int64_t g = truth.offsets[map]; g < truth.offsets[map + 1]; ++g) {
    raise_to_iou(box, truth.boxes + 4 * g, best);
  }
  return best;
}

}  // namespace

void largest_boxes(const Maps& maps, const Thresholds& thresholds, std::int32_t* boxes,
                   int num_threads) {
  for_each_map(maps, num_threads, [&](std::int64_t map, LevelSets& sets) {
    BoxTable table;
    largest_by_level(maps, sets, table);
    std::int32_t* out = boxes + map * thresholds.num * 4;
    for (std::int64_t t = 0; t < thresholds.num; ++t, out += 4) {
      const Box& box = table[level_of(thresholds.values[t], sets.maximum())];
      out[0] = box.x0;
      out[1] = box.y0;
      out[2] = box.x1;
      out[3] = box.y1;
    }
  });
}

AllBoxes::AllBoxes(const Maps& maps, const Thresholds& thresholds, int num_threads)
    : boxes_(maps.num), levels_(maps.num * thresholds.num), offsets_(levels_.size() + 1) {
  for_each_map(maps, num_threads, [&](std::int64_t map, LevelSets& sets) {
    BoxesAtLevel& at = boxes_[map];
    at.resize(std::max(sets.maximum(), 1));
    std::vector<bool> needed(at.size());
    for (std::int64_t t = 0; t < thresholds.num; ++t) {
      const std::int32_t level = level_of(thresholds.values[t], sets.maximum());
      levels_[map * thresholds.num + t] = level;
      needed[level] = true;
    }
    if (sets.maximum() == 0) {
      at[0] = {kNoContour};
      return;
    }
    std::vector<Life> lives;
    sets.all(&lives);
    for (const Life& life : lives) {
      for (std::int32_t level = life.lowest; level <= life.highest; ++level) {
        if (needed[level]) at[level].push_back(official_box(life.box, maps));
      }
    }
    for (std::vector<Box>& boxes : at) {
      std::sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) {
        return std::tie(a.x0, a.y0, a.x1, a.y1) < std::tie(b.x0, b.y0, b.x1, b.y1);
      });
    }
  });
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

void best_iou(const Maps& maps, const Thresholds& thresholds, const GroundTruth& truth,
              bool all_contours, double* iou, int num_threads) {
  for_each_map(maps, num_threads, [&](std::int64_t map, LevelSets& sets) {
    std::array<double, kLevels> best{};
    if (all_contours && sets.maximum() > 0) {
      std::vector<Life> lives;
      sets.all(&lives);
      for (const Life& life : lives) {
        const double value = best_of(official_box(life.box, maps), truth, map);
        for (std::int32_t level = life.lowest; level <= life.highest; ++level) {
          best[level] = std::max(best[level], value);
        }
      }
    } else {
      BoxTable table;
      largest_by_level(maps, sets, table);
      for (int level = 0; level < std::max(sets.maximum(), 1); ++level) {
        best[level] = best_of(table[level], truth, map);
      }
    }
    double* out = iou + map * thresholds.num;
    for (std::int64_t t = 0; t < thresholds.num; ++t) {
      out[t] = best[level_of(thresholds.values[t], sets.maximum())];
    }
  });
}

}  // namespace cba
