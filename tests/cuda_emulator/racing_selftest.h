// Kernels that test the search for races. Each has a race, or none if `right` is set.
#pragma once

#include <cuda_runtime.h>

#include <vector>

struct RacingPair {
  const char* name;
  void (*kernel)(int* data, bool right);
  unsigned blocks;
};

extern const std::vector<RacingPair> racing_pairs;

// `data` has 256 elements, at least as many as the grid has threads.
cudaError_t run_racing(const RacingPair& pair, int* data, bool right);
