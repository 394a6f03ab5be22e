#include "cpu/vec_avx2.h"
// The Vec type comes first.
#include "cpu/dwconv_body.h"

namespace cba {

const ConvKernels ConvKernels::kAvx2 = conv_kernels();

}  // namespace cba
