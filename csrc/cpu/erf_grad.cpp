#include "cpu/erf_grad.h"

#include <stdexcept>
#include <utility>

namespace cba {
namespace {

std::int64_t bytes_of(GradType type) {
  switch (type) {
    case GradType::kFloat32:
      return 4;
    case GradType::kFloat64:
      return 8;
    default:
      return 2;
  }
}

}  // namespace

GradType parse_grad_type(const std::string& name) {
  if (name == "float32") return GradType::kFloat32;
  if (name == "float64") return GradType::kFloat64;
  if (name == "float16") return GradType::kFloat16;
  if (name == "bfloat16") return GradType::kBFloat16;
  throw std::invalid_argument("dtype must be float32, float64, float16 or bfloat16, got " + name);
}

ErfMode parse_erf_mode(const std::string& name) {
  if (name == "relu") return ErfMode::kRelu;
  if (name == "abs") return ErfMode::kAbs;
  if (name == "square") return ErfMode::kSquare;
  throw std::invalid_argument("mode must be relu, abs or square, got " + name);
}

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
