#include "cpu/segment_forest.h"

#include <algorithm>
#include <numeric>

namespace cba {
namespace {

constexpr std::int32_t kWordBits = 64;

// Returns the first set bit from `from` on; there must be one.
std::int32_t next_bit(const std::uint64_t* bits, std::int32_t from) {
  const std::int32_t word = from / kWordBits;
  const std::uint64_t rest = bits[word] >> (from % kWordBits);
  if (rest != 0) return from + __builtin_ctzll(rest);
  const std::uint64_t* next = bits + word + 1;
  while (*next == 0) ++next;
  return static_cast<std::int32_t>(next - bits) * kWordBits + __builtin_ctzll(*next);
}

// Follows `to` from i to an entry that points to itself, and shortens the path.
std::int32_t find(std::vector<std::int32_t>& to, std::int32_t i) {
  while (to[i] != i) {
    to[i] = to[to[i]];
    i = to[i];
  }
  return i;
}

}  // namespace

bool SegmentForest::build(const PaddedMap& map, Connectivity connectivity,
                          std::int32_t max_basins) {
  start(map, connectivity);
  const bool diagonals = connectivity == Connectivity::kEight;
  cut_row(map, 0);
  for (std::int32_t y = 0; y + 1 < map.height; ++y) {
    cut_row(map, y + 1);
    touch_rows(map, y, diagonals);
    // Segments of the rows up to y that are not yet part of another one remain basins.
    if (row_begin_[y + 1] - num_parts_ > max_basins) return false;
  }
  if (connectivity == Connectivity::kFourWithFrame) touch_frame(map);
  if (num_segments_ - num_parts_ > max_basins) return false;
  find_basins();
  sort_edges();
  merge_basins();
  return true;
}

void SegmentForest::start(const PaddedMap& map, Connectivity connectivity) {
  const std::size_t words = map.stride / kWordBits;
  rises_.resize(words);
  falls_.resize(words);
  saddles_.resize(words);
  row_begin_.resize(map.height + 1);
  num_edges_ = 0;
  num_segments_ = num_parts_ = 0;
  if (end_.empty()) {
    end_.resize(1);
    peak_.resize(1);
    part_.resize(1);
  }
  if (connectivity == Connectivity::kFourWithFrame) {
    peak_[0] = kFramePeak;
    part_[0] = 0;
    num_segments_ = 1;
  }
  row_begin_[0] = num_segments_;
}

void SegmentForest::cut_row(const PaddedMap& map, std::int32_t y) {
  const std::uint8_t* row = map.row(y);
  kernels_.slopes(row, map.width, rises_.data(), falls_.data());
  const std::size_t most = num_segments_ + map.width / 2 + 1;
  if (end_.size() < most) {
    end_.resize(2 * most);
    peak_.resize(2 * most);
    part_.resize(2 * most);
  }
  reserve_edges(map.width);
  std::int32_t i = num_segments_;
  for (std::int32_t x = 0;; ++i) {
    const std::int32_t top = next_bit(falls_.data(), x);
    const std::int32_t end = next_bit(rises_.data(), top);
    end_[i] = end;
    peak_[i] = row[top];
    part_[i] = i;
    if (end == map.width - 1) break;
    // The last pixel before the next rise is lower than both peaks.
    edges_[num_edges_] = {i, i + 1, row[end]};
    num_edges_ += row[end] > 0;
    x = end + 1;
  }
  num_segments_ = row_begin_[y + 1] = i + 1;
}

// Notes that two segments touch at `weight`, the lower of two neighboring pixels. `later` is in the
// row below, or `earlier` is the frame. A segment becomes part of one that is higher, or as high
// and later, so that chains of parts cannot close. It does so once; if its peak touches a second
// segment, the two get an edge. There are no branches, because a processor could not predict them.
inline void SegmentForest::touch(std::int32_t earlier, std::int32_t later, std::int32_t weight) {
  const std::int32_t part_of_earlier = part_[earlier], part_of_later = part_[later];
  const bool ends_earlier = (weight == peak_[earlier]) & (part_of_earlier == earlier);
  const bool ends_later = !ends_earlier & (weight == peak_[later]) & (part_of_later == later) &
                          (weight < peak_[earlier]);
  part_[earlier] = ends_earlier ? later : part_of_earlier;
  part_[later] = ends_later ? earlier : part_of_later;
  edges_[num_edges_] = {earlier, later, weight};
  num_parts_ += ends_earlier | ends_later;
  num_edges_ += !(ends_earlier | ends_later) & (weight > 0);
}

// Makes room for the edges that a row of segments can have within itself and to the row before.
void SegmentForest::reserve_edges(std::int32_t width) {
  const std::size_t most = num_edges_ + 3 * static_cast<std::size_t>(width) + 4;
  if (edges_.size() < most) edges_.resize(2 * most);
}

// Notes the segments of rows y and y + 1 that touch. Where two overlap, the lower of the two values
// first rises and then falls, so that its highest point is where it first falls.
void SegmentForest::touch_rows(const PaddedMap& map, std::int32_t y, bool diagonals) {
  const std::uint8_t *above = map.row(y), *below = map.row(y + 1);
  kernels_.touch(above, below, map.width, falls_.data(), diagonals ? saddles_.data() : nullptr);
  if (diagonals) touch_diagonals(map, y);
  std::int32_t a = row_begin_[y], b = row_begin_[y + 1];
  for (std::int32_t x = 0;;) {
    const std::int32_t end = std::min(end_[a], end_[b]);
    const std::int32_t top = std::min(next_bit(falls_.data(), x), end);
    touch(a, b, std::min(above[top], below[top]));
    if (end == map.width - 1) return;
    x = end + 1;
    a += end_[a] == end;
    b += end_[b] == end;
  }
}

// A diagonal counts only where both pixels beside it are lower, at a saddle. Elsewhere the way over
// one of these pixels is as high.
void SegmentForest::touch_diagonals(const PaddedMap& map, std::int32_t y) {
  const std::uint8_t *above = map.row(y), *below = map.row(y + 1);
  std::int32_t a = row_begin_[y], b = row_begin_[y + 1];
  for (std::size_t word = 0; word < saddles_.size(); ++word) {
    for (std::uint64_t bits = saddles_[word]; bits != 0; bits &= bits - 1) {
      const std::int32_t x = static_cast<std::int32_t>(word) * kWordBits + __builtin_ctzll(bits);
      while (end_[a] < x) ++a;
      while (end_[b] < x) ++b;
      const std::int32_t falling = std::min(above[x], below[x + 1]);
      const std::int32_t rising = std::min(above[x + 1], below[x]);
      if (falling > rising) {
        touch(a, b + (end_[b] == x), falling);
      } else {
        touch(a + (end_[a] == x), b, rising);
      }
    }
  }
}

void SegmentForest::touch_frame(const PaddedMap& map) {
  reserve_edges(map.width + map.height);
  for (std::int32_t y : {0, map.height - 1}) {
    for (std::int32_t i = row_begin_[y]; i < row_begin_[y + 1]; ++i) touch(0, i, peak_[i]);
  }
  for (std::int32_t y = 0; y < map.height; ++y) {
    touch(0, row_begin_[y], map.row(y)[0]);
    touch(0, row_begin_[y + 1] - 1, map.row(y)[map.width - 1]);
  }
}

// Numbers the basins in the order of their highest segments; from here on part_ holds basins.
void SegmentForest::find_basins() {
  basins_.clear();
  root_.resize(num_segments_);
  for (std::int32_t i = 0; i < num_segments_; ++i) {
    if (part_[i] != i) continue;
    root_[i] = static_cast<std::int32_t>(basins_.size());
    basins_.push_back({peak_[i]});
  }
  // Most segments are part of one in a row below, which is already settled in this order.
  for (std::int32_t i = num_segments_ - 1; i >= 0; --i) {
    part_[i] = find(part_, i);
  }
  for (std::int32_t i = 0; i < num_segments_; ++i) part_[i] = root_[part_[i]];
}

// Keeps the edges between different basins and sorts them by falling weight.
void SegmentForest::sort_edges() {
  std::int64_t start[257] = {};
  std::size_t num = 0;
  for (std::size_t i = 0; i < num_edges_; ++i) {
    const std::int32_t a = part_[edges_[i].a], b = part_[edges_[i].b], weight = edges_[i].weight;
    edges_[num] = {a, b, weight};
    num += a != b;
    start[255 - weight + 1] += a != b;
  }
  std::partial_sum(start, start + 257, start);
  sorted_.resize(num);
  for (std::size_t i = 0; i < num; ++i) sorted_[start[255 - edges_[i].weight]++] = edges_[i];
}

void SegmentForest::merge_basins() {
  root_.resize(basins_.size());
  std::iota(root_.begin(), root_.end(), 0);
  merged_.clear();
  for (const Edge& edge : sorted_) {
    std::int32_t a = find(root_, edge.a), b = find(root_, edge.b);
    if (a == b) continue;
    if (basins_[a].peak < basins_[b].peak) std::swap(a, b);
    root_[b] = a;
    basins_[b].weight = edge.weight;
    basins_[b].elder = a;
    merged_.push_back(b);
    if (merged_.size() + 1 == basins_.size()) return;
  }
}

}  // namespace cba
