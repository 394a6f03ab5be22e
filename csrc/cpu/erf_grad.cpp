#include "cpu/erf_grad.h"

#include <utility>

namespace cba {
namespace {

std::int64_t bytes_of(DType type) {
  switch (type) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
    default:
      return 2;
  }
}

}  // namespace

Runs::Runs(const Gradients& grad, const ErfMap& map) : grad_(grad), map_(map) {
  // The stride of an axis of size 1 may be anything.
  const bool across = grad_.height > 1 && grad_.stride_h < grad_.stride_w;
  if (grad_.width == 1 || across) {
    std::swap(grad_.height, grad_.width);
    std::swap(grad_.stride_h, grad_.stride_w);
    std::swap(map_.stride_h, map_.stride_w);
  }
  if (grad_.height == 1 || (grad_.stride_h == grad_.width * grad_.stride_w &&
                            map_.stride_h == grad_.width * map_.stride_w)) {
    grad_.width *= grad_.height;
    grad_.height = 1;
  }
  per_row_ = (grad_.width + kRun - 1) / kRun;
}

PixelRun Runs::run(std::int64_t image, std::int64_t index) const {
  const std::int64_t offset =
      image * grad_.stride_n + y(index) * grad_.stride_h + x(index) * grad_.stride_w;
  return {static_cast<const char*>(grad_.data) + offset * bytes_of(grad_.type), grad_.channels,
          grad_.stride_c, grad_.stride_w, std::min<std::int64_t>(kRun, grad_.width - x(index))};
}

}  // namespace cba
