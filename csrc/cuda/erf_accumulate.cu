// The ERF accumulator on a GPU. The order of additions is fixed: channels and images one after the
// other within a group of eight images, then the groups' sums with compensation. So one thread sums
// a pixel of one group, and one thread adds the groups of a pixel; more than H * W * ceil(N / 8)
// threads could not add at the same time without changing bits. Every operation names its rounding,
// so that no compiler setting can fuse two of them.
//
// A batch is read once, and the map is read and written once. Each thread does 8 * C additions,
// which overlap with the loads on GPUs with float64 units.
#include "cuda/erf_accumulate.h"
#include "cuda/erf_pixels.h"
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace cba {
namespace {

constexpr int kGroup = 8;
constexpr unsigned kPixels = 32;     // pixels of a block, by threadIdx.x
constexpr unsigned kMostGroups = 8;  // groups that a block sums at a time, by threadIdx.y

// A NaN stays a NaN in all three modes.
template <ErfMode kMode>
__device__ double term(double x) {
  if constexpr (kMode == ErfMode::kRelu) return x < 0 ? 0.0 : x;
  if constexpr (kMode == ErfMode::kAbs) return fabs(x);
  if constexpr (kMode == ErfMode::kSquare) return __dmul_rn(x, x);
}

// The sum of one group at one pixel. Terms are >= 0, so that neither the zero at the beginning nor
// the zeros that for_each_channel appends change it.
template <ErfMode kMode, class T>
__device__ double sum_of_group(const T* at, const ErfPixels& pixels, std::int64_t images) {
  double sum = 0;
  for (std::int64_t n = 0; n < images; ++n, at += pixels.stride_n) {
    for_each_channel(at, pixels, [&](auto x) { sum = __dadd_rn(sum, term<kMode>(x)); });
  }
  return sum;
}

// The error of each addition is found exactly (D. Knuth, The Art of Computer Programming, volume 2,
// section 4.2.2).
__device__ void add_compensated(double value, double& sum, double& error) {
  const double total = __dadd_rn(sum, value);
  const double added = __dsub_rn(total, sum);
  const double lost = __dadd_rn(__dsub_rn(sum, __dsub_rn(total, added)), __dsub_rn(value, added));
  error = __dadd_rn(error, lost);
  sum = total;
}

// Block b has the pixels from b * kPixels on, and each row of its threads every blockDim.y-th
// group.
template <ErfMode kMode, class T>
__global__ void __launch_bounds__(kPixels* kMostGroups, 6)
    accumulate_kernel(const T* __restrict__ values, ErfPixels pixels, std::int64_t images,
                      double* map) {
  auto* sums = reinterpret_cast<double*>(dynamic_shared());  // [blockDim.y, kPixels]
  const unsigned pixel = blockIdx.x * kPixels + threadIdx.x;
  const ErfPlace place(pixels, min(pixel, pixels.count - 1));
  values += place.in_image(pixels);
  const std::int64_t groups = (images + kGroup - 1) / kGroup;
  double sum = 0, error = 0;
  for (std::int64_t base = 0; base < groups; base += blockDim.y) {
    const std::int64_t start = (base + threadIdx.y) * kGroup;
    sums[threadIdx.y * kPixels + threadIdx.x] = sum_of_group<kMode>(
        values + start * pixels.stride_n, pixels, min(images - start, std::int64_t{kGroup}));
    __syncthreads();
    if (threadIdx.y == 0) {
      const std::int64_t here = min(groups - base, static_cast<std::int64_t>(blockDim.y));
      for (std::int64_t i = 0; i < here; ++i) {
        add_compensated(sums[i * kPixels + threadIdx.x], sum, error);
      }
    }
    __syncthreads();
  }
  if (threadIdx.y != 0 || pixel >= pixels.count) return;
  double& to = map[place.in_map(pixels)];
  to = __dadd_rn(to, __dadd_rn(sum, error));
}

template <ErfMode kMode>
cudaError_t launch_as(const CudaErfAccumulateParams& p) {
  const ErfPixels pixels = erf_pixels(p.grad, p.map);
  const std::int64_t groups = (p.grad.images + kGroup - 1) / kGroup;
  const auto side_by_side = static_cast<unsigned>(std::min<std::int64_t>(groups, kMostGroups));
  const unsigned blocks = (pixels.count + kPixels - 1) / kPixels;
  const std::size_t shared = sizeof(double) * kPixels * side_by_side;
  const Launch where = {blocks, dim3(kPixels, side_by_side), shared, p.stream};
  return with_values(p.grad, [&](const auto* values) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    return launch(where, accumulate_kernel<kMode, T>, values, pixels, p.grad.images, p.map.data);
  });
}

}  // namespace

cudaError_t erf_accumulate_cuda(const CudaErfAccumulateParams& params) {
  const Gradients& grad = params.grad;
  if (grad.images == 0 || grad.channels == 0 || grad.height == 0 || grad.width == 0) {
    return cudaSuccess;
  }
  const DeviceGuard guard(params.device);
  if (guard.status() != cudaSuccess) return guard.status();
  switch (params.mode) {
    case ErfMode::kAbs:
      return launch_as<ErfMode::kAbs>(params);
    case ErfMode::kSquare:
      return launch_as<ErfMode::kSquare>(params);
    default:
      return launch_as<ErfMode::kRelu>(params);
  }
}

}  // namespace cba
