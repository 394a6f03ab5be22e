#include "cpu/erf_accumulate.h"

#include <algorithm>

#include "common/parallel_for.h"

namespace cba {

void erf_accumulate(const Gradients& grad, ErfMode mode, const ErfMap& map, Isa isa,
                    int num_threads) {
  if (grad.images == 0 || grad.channels == 0) return;
  const ErfKernels& kernels = erf_kernels_for(isa);
  const auto sum_channels = kernels.sum[static_cast<int>(mode)][static_cast<int>(grad.type)];
  const Runs runs(grad, map);
  parallel_for(runs.size(), num_threads, [&](std::int64_t begin, std::int64_t end) {
    double of_image[kRun], sums[kRun], errors[kRun];
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t count = runs.run(0, index).count;
      std::fill_n(sums, count, 0.0);
      std::fill_n(errors, count, 0.0);
      for (std::int64_t image = 0; image < grad.images; ++image) {
        sum_channels(runs.run(image, index), of_image);
        kernels.add_compensated(of_image, count, sums, errors);
      }
      double* to = runs.in_map(index);
      for (std::int64_t x = 0; x < count; ++x) to[x * runs.map_stride()] += sums[x] + errors[x];
    }
  });
}

}  // namespace cba
