// The number of pixels that hold a share of an image's gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/erf_grad.h"
#include "cpu/isa.h"

namespace cba {

// Let g be the mean of |gradient| over the channels, v its values in descending order, and S_k =
// S_(k-1) + v_k in float64. sizes[n * shares.size() + i] is the smallest k with S_k >= shares[i] *
// S_last, or 0 if S_last is 0. Shares are in [0, 1]. The sizes always equal those found by sorting
// and adding one value after another, see erf_size.cpp.
//
// Returns the first image whose g or S_last is not finite (all sizes are then undefined), or -1.
std::int64_t erf_size(const Gradients& grad, const std::vector<double>& shares, std::int64_t* sizes,
                      Isa isa, int num_threads);

}  // namespace cba
