// map += sum over images and channels of f(gradient), in float64.
#pragma once

#include "cpu/erf_grad.h"
#include "cpu/isa.h"

namespace cba {

// For each pixel, the channels of eight images at a time are added up in order. These sums are
// added up with compensation (the error of each addition is kept), and the result is added to the
// map. Threads share the pixels.
void erf_accumulate(const Gradients& grad, ErfMode mode, const ErfMap& map, Isa isa,
                    int num_threads);

}  // namespace cba
