// Boxes of thresholded byte maps on a GPU, and their IoU with ground truth, as cpu/box_sweep.h and
// cpu/level_sets.h define them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace cba {

constexpr int kSweepLevels = 255;  // level L is the mask u > L

// All addresses are in device memory. Results are by map and level, [num, kSweepLevels]; those that
// are null are not computed.
struct CudaSweepParams {
  const std::uint8_t* maps;  // [num, height, width]
  std::int64_t num, height, width;
  bool all_contours;  // or only the one of largest area
  // [num_pairs] The wanted levels, as map * kSweepLevels + level.
  const std::int64_t* pairs;
  std::int64_t num_pairs;
  int nodes;
  std::uint8_t* done;  // set to 1 by the kernel, unless the level has more nodes
  // Boxes x0, y0, x1, y1: the largest one of each level; or all, of which those of a level begin at
  // box number `starts`, in any order.
  std::int32_t* boxes;
  const std::int64_t* starts;
  std::int32_t* counts;  // boxes of each level, if all_contours
  double* iou;           // the best IoU with a true box
  // The true boxes of map i are truth[offsets[i] .. offsets[i + 1]), each x0, y0, x1, y1.
  const std::int64_t *truth, *offsets;
  int device;
  cudaStream_t stream;
};

// Returns the most nodes for which a block has memory beside a mask of that size; below 1 if the
// mask alone is too large.
std::int64_t box_sweep_cuda_nodes(std::int64_t height, std::int64_t width);

// Returns the error code of the launch without waiting for the kernel.
cudaError_t box_sweep_cuda(const CudaSweepParams& params);

}  // namespace cba
