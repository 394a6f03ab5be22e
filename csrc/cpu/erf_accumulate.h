// map += sum over images and channels of f(gradient), in float64.
#pragma once

#include "cpu/erf_grad.h"
#include "cpu/isa.h"

namespace cba {

// For each pixel: channels and images are added up in order, eight images at a time; those sums
// with the error of each addition kept (compensated), and that sum is added to the map. Pixels are
// shared out among threads.
void erf_accumulate(const Gradients& grad, ErfMode mode, const ErfMap& map, Isa isa,
                    int num_threads);

}  // namespace cba
