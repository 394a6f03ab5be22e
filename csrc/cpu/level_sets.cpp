#include "cpu/level_sets.h"

#include <algorithm>
#include <cstring>

namespace cba {
LevelSets::LevelSets(std::int32_t height, std::int32_t width)
    : height_(height),
      width_(width),
      stride_(width + 2),
      size_((height + 2) * (width + 2)),
      values_(size_),
      order_(static_cast<std::size_t>(height) * width),
      parent_(size_),
      box_(size_) {}

void LevelSets::load(const std::uint8_t* map, std::int64_t row_stride) {
  maximum_ = 0;
  for (std::int32_t y = 0; y < height_; ++y) {
    const std::uint8_t* row = map + y * row_stride;
    std::memcpy(&values_[(y + 1) * stride_ + 1], row, width_);
    maximum_ = std::max<int>(maximum_, *std::max_element(row, row + width_));
  }
}

// Sorts the pixels inside the map by value, by counting.
void LevelSets::sort_pixels(const std::vector<std::uint8_t>& values) {
  std::fill(std::begin(start_), std::end(start_), 0);
  auto each_pixel = [&](auto&& f) {
    for (std::int32_t y = 1; y <= height_; ++y) {
      const std::int32_t row = y * stride_;
      for (std::int32_t p = row + 1; p <= row + width_; ++p) f(p);
    }
  };
  each_pixel([&](std::int32_t p) { ++start_[values[p] + 1]; });
  for (int v = 0; v < 256; ++v) start_[v + 1] += start_[v];
  std::int32_t next[256];
  std::copy(start_, start_ + 256, next);
  each_pixel([&](std::int32_t p) { order_[next[values[p]]++] = p; });
}

void LevelSets::reset() { std::fill(parent_.begin(), parent_.end(), -1); }

// Makes the border of the grid one component, with root 0.
void LevelSets::enter_outside() {
  for (std::int32_t x = 0; x < stride_; ++x) parent_[x] = parent_[size_ - 1 - x] = 0;
  for (std::int32_t y = 1; y <= height_; ++y) {
    parent_[y * stride_] = parent_[y * stride_ + width_ + 1] = 0;
  }
}

std::int32_t LevelSets::find(std::int32_t pixel) {
  while (parent_[pixel] != pixel) {
    parent_[pixel] = parent_[parent_[pixel]];
    pixel = parent_[pixel];
  }
  return pixel;
}

// The largest contour. First the holes of the map are filled for all levels at once. The components
// of {filled > L} are then the outermost ones of {u > L}. The largest contour is always the outer
// border of one of them, because all other contours lie inside of these. Twice cv2.contourArea of
// that border is twice the number of 2x2 quads with four foreground pixels plus the number of quads
// with three. Among equal areas OpenCV lists the component first whose first pixel comes last in
// raster order.

// filled(p) is the smallest maximum of a 4-connected path from p out of the map, so that {filled >
// L} is {u > L} with its holes filled. A flood from the border with a bucket for each value visits
// pixels in rising order of `filled`.
void LevelSets::fill_holes() {
  filled_.assign(size_, 0);
  queue_.resize(size_);
  reset();  // in this function parent_ >= 0 marks a visited pixel
  std::int32_t bucket[256];
  std::fill(std::begin(bucket), std::end(bucket), -1);
  auto visit = [&](std::int32_t p, std::uint8_t at_least) {
    if (parent_[p] >= 0) return;
    parent_[p] = p;
    filled_[p] = std::max(values_[p], at_least);
    queue_[p] = bucket[filled_[p]];
    bucket[filled_[p]] = p;
  };
  enter_outside();
  for (std::int32_t x = 1; x <= width_; ++x) {
    visit(stride_ + x, 0);
    visit(height_ * stride_ + x, 0);
  }
  for (std::int32_t y = 1; y <= height_; ++y) {
    visit(y * stride_ + 1, 0);
    visit(y * stride_ + width_, 0);
  }
  for (int value = 0; value < 256; ++value) {
    while (bucket[value] >= 0) {
      const std::int32_t p = bucket[value];
      bucket[value] = queue_[p];
      for (std::int32_t q : {p - stride_, p - 1, p + 1, p + stride_}) visit(q, filled_[p]);
    }
  }
}

// The smaller pixel becomes the root, so that a root is the first pixel of its component.
std::int32_t LevelSets::join(std::int32_t a, std::int32_t b) {
  a = find(a);
  b = find(b);
  if (a == b) return a;
  if (b < a) std::swap(a, b);
  parent_[b] = a;
  box_[a] = hull(box_[a], box_[b]);
  area2_[a] += area2_[b];
  return a;
}

// Adds a pixel to the foreground; returns the root of its component.
std::int32_t LevelSets::grow(std::int32_t pixel) {
  parent_[pixel] = pixel;
  box_[pixel] = pixel_box(pixel);
  area2_[pixel] = 0;
  const std::int32_t up = pixel - stride_, down = pixel + stride_;
  std::int32_t root = pixel;
  for (std::int32_t q : {up - 1, up, up + 1, pixel - 1, pixel + 1, down - 1, down, down + 1}) {
    if (parent_[q] >= 0) root = join(root, q);
  }
  // The third and the fourth pixel of a quad each add half a pixel to the area.
  for (std::int32_t q : {up - 1, up, pixel - 1, pixel}) area2_[root] += ++quad_[q] >= 3;
  return root;
}

void LevelSets::largest(Box* box_at_level) {
  fill_holes();
  sort_pixels(filled_);
  reset();
  area2_.resize(size_);
  quad_.assign(size_, 0);
  std::int32_t best_area2 = -1;
  // A heap of the roots whose area equals the best, with the last one in raster order on top. An
  // entry becomes invalid only if it is merged into another root, because a growing area raises the
  // best and empties the heap.
  std::vector<std::int32_t> best;
  for (int level = maximum_ - 1; level >= 0; --level) {
    for (std::int32_t i = start_[level + 1]; i < start_[level + 2]; ++i) {
      const std::int32_t root = grow(order_[i]);
      if (area2_[root] < best_area2) continue;
      if (area2_[root] > best_area2) best.clear();
      best_area2 = area2_[root];
      best.push_back(root);
      std::push_heap(best.begin(), best.end());
    }
    while (parent_[best.front()] != best.front()) {
      std::pop_heap(best.begin(), best.end());
      best.pop_back();
    }
    box_at_level[level] = box_[best.front()];
  }
}

// All contours. The boxes are those of all 8-connected components of the foreground, and for each
// hole, a 4-connected component of the background that does not reach the border, its box grown by
// one pixel on each side. Both are followed through the steps 0 .. maximum - 1: step s is level
// maximum - 1 - s for components, and level s for holes.

void LevelSets::contours(bool of_holes, LifeSink& sink) {
  sort_pixels(values_);
  since_.resize(size_);
  follow(of_holes, sink);
}

// Records the box that the component of `root` had until the step before `now`.
void LevelSets::end_life(std::int32_t root, std::int32_t now, bool holes, LifeSink& sink) const {
  const std::int32_t first = since_[root], last = now - 1;
  if (first > last) return;
  const Box& b = box_[root];
  if (holes) {
    sink.add({{b.x0 - 1, b.y0 - 1, b.x1 + 1, b.y1 + 1}, first, last});
  } else {
    sink.add({b, maximum_ - 1 - last, maximum_ - 1 - first});
  }
}

// Joins two components at step `now`. If the box of one already contains the other, its life goes
// on.
std::int32_t LevelSets::merge_lives(std::int32_t a, std::int32_t b, std::int32_t now, bool holes,
                                    LifeSink& sink) {
  a = find(a);
  b = find(b);
  if (a == b) return a;
  if (b < a) std::swap(a, b);
  parent_[b] = a;
  if (a == 0) {  // the outside of the map swallows a hole
    end_life(b, now, holes, sink);
    return a;
  }
  const Box both = hull(box_[a], box_[b]);
  const bool keep_a = box_[a] == both && (!(box_[b] == both) || since_[a] <= since_[b]);
  const bool keep_b = !keep_a && box_[b] == both;
  if (!keep_a) end_life(a, now, holes, sink);
  if (!keep_b) end_life(b, now, holes, sink);
  since_[a] = keep_a ? since_[a] : keep_b ? since_[b] : now;
  box_[a] = both;
  return a;
}

void LevelSets::follow(bool holes, LifeSink& sink) {
  reset();
  if (holes) enter_outside();
  const std::int32_t neighbors[8] = {-stride_,     -1,          1,           stride_,
                                     -stride_ - 1, 1 - stride_, stride_ - 1, stride_ + 1};
  const int connectivity = holes ? 4 : 8;
  for (std::int32_t step = 0; step < maximum_; ++step) {
    const int value = holes ? step : maximum_ - step;
    for (std::int32_t i = start_[value]; i < start_[value + 1]; ++i) {
      const std::int32_t pixel = order_[i];
      parent_[pixel] = pixel;
      box_[pixel] = pixel_box(pixel);
      since_[pixel] = step;
      std::int32_t root = pixel;
      for (int k = 0; k < connectivity; ++k) {
        const std::int32_t q = pixel + neighbors[k];
        if (parent_[q] >= 0) root = merge_lives(root, q, step, holes, sink);
      }
    }
  }
  for (std::int32_t pixel : order_) {
    if (parent_[pixel] == pixel) end_life(pixel, maximum_, holes, sink);
  }
}

}  // namespace cba
