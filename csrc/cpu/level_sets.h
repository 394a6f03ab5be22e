// Contours of the level sets {u > L} of a byte map, for all levels in one pass over the pixels.
//
// A level L (0 <= L < max u) stands for every threshold t with int(t * max u) = L. Level sets grow
// as L falls, so that their 8-connected components only appear, grow and merge. A union-find
// structure follows them from the highest level to the lowest, and the 4-connected components of
// the background {u <= L} from the lowest to the highest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace cba {

constexpr int kLevels = 255;  // the most levels that a byte map can have

// A box with inclusive corners.
struct Box {
  std::int32_t x0, y0, x1, y1;
  bool operator==(const Box& other) const {
    return x0 == other.x0 && y0 == other.y0 && x1 == other.x1 && y1 == other.y1;
  }
};

inline Box hull(const Box& a, const Box& b) {
  return {std::min(a.x0, b.x0), std::min(a.y0, b.y0), std::max(a.x1, b.x1), std::max(a.y1, b.y1)};
}

// The bounding box of one contour, and the levels (both inclusive) at which it has that box.
struct Life {
  Box box;
  std::int32_t lowest, highest;
};

// Takes the lives of all contours of a map, in any order.
class LifeSink {
 public:
  virtual ~LifeSink() = default;
  // Returns false if lives whose levels and boxes lie within those of `whole` do not matter.
  virtual bool wants(const Life& whole) const = 0;
  virtual void add(const Life& life) = 0;
};

// Scratch memory and results for maps of one size; one object per thread.
class LevelSets {
 public:
  LevelSets(std::int32_t height, std::int32_t width);

  // Copies a map whose rows start `row_stride` bytes apart. Afterwards maximum() is its largest
  // value, and its levels are 0 .. maximum() - 1.
  void load(const std::uint8_t* map, std::int64_t row_stride);
  int maximum() const { return maximum_; }

  // Finds the bounding box of the contour of largest area at each level, as
  // max(cv2.findContours(u > L, RETR_TREE, ...), key=cv2.contourArea) would.
  void largest(Box* box_at_level);

  // Finds the bounding boxes of all outer borders, or of all hole borders.
  void contours(bool of_holes, LifeSink& sink);

 private:
  void fill_holes();
  void sort_pixels(const std::vector<std::uint8_t>& values);
  void reset();
  void enter_outside();
  std::int32_t find(std::int32_t pixel);
  std::int32_t join(std::int32_t a, std::int32_t b);
  std::int32_t grow(std::int32_t pixel);
  void follow(bool holes, LifeSink& sink);
  void end_life(std::int32_t root, std::int32_t now, bool holes, LifeSink& sink) const;
  std::int32_t merge_lives(std::int32_t a, std::int32_t b, std::int32_t now, bool holes,
                           LifeSink& sink);
  Box pixel_box(std::int32_t pixel) const {
    const std::int32_t y = pixel / stride_ - 1, x = pixel % stride_ - 1;
    return {x, y, x, y};
  }

  // Pixels are numbered in a grid with a border of one pixel on each side, so that neighbors need
  // no bounds test; numbers rise in raster order.
  std::int32_t height_, width_, stride_, size_;
  int maximum_ = 0;
  std::vector<std::uint8_t> values_, filled_;  // [size_], border 0
  std::vector<std::int32_t> order_;            // pixels inside the map by rising value
  std::int32_t start_[257];                    // value v is order_[start_[v] .. start_[v + 1])
  std::vector<std::int32_t> parent_;           // [size_], -1: not yet in a component
  std::vector<Box> box_;                       // box of a root's component
  std::vector<std::int32_t> area2_;            // twice the contour area of a root's component
  std::vector<std::int32_t> since_;            // step at which a root's component got its box
  std::vector<std::uint8_t> quad_;             // foreground pixels of the 2x2 quad that starts here
  std::vector<std::int32_t> queue_;            // fill_holes: next pixel in the same bucket
};

}  // namespace cba
