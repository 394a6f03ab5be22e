#include "cpu/vec_avx512.h"
// The Vec type comes first.
#include "cpu/dwconv_body.h"

namespace cba {

const ConvKernels ConvKernels::kAvx512 = conv_kernels();

}  // namespace cba
