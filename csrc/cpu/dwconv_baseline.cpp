#include "cpu/vec_baseline.h"
// The Vec type comes first.
#include "cpu/dwconv_body.h"

namespace cba {

const ConvKernels ConvKernels::kBaseline = conv_kernels();

}  // namespace cba
