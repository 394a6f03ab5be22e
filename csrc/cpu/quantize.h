// Quantizes score maps: u = uint8(255 * m), truncated, for m in [0, 1], computed in the type of m.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa.h"

namespace cba {

// Quantizes n contiguous values. Returns the index of the first one that is NaN or outside [0, 1]
// (the output is then undefined), or -1.
std::int64_t quantize(const void* source, DType dtype, std::uint8_t* bytes, std::int64_t n, Isa isa,
                      int num_threads);

}  // namespace cba
