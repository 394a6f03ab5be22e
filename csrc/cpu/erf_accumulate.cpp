#include "cpu/erf_accumulate.h"

#include <algorithm>
#include <vector>

#include "common/parallel_for.h"

namespace cba {
namespace {

// The sum of so many images is not compensated. To compensate each image would double the time,
// which would be bound by additions instead of memory.
constexpr std::int64_t kGroup = 8;

// A thread takes so many runs of pixels through all images. Their 16 KB per channel of float32 are
// enough for the processor to read ahead, while the sums (100 KB) stay in the L2 cache.
constexpr std::int64_t kBlock = 4;

// The sums of a block of runs.
class Block {
 public:
  Block() : group_(kBlock * kRun), sums_(kBlock * kRun), errors_(kBlock * kRun) {}

  void add(const ErfKernels& kernels, const Gradients& grad, ErfMode mode, const Runs& runs,
           std::int64_t begin, std::int64_t end) {
    const auto sum_channels = kernels.sum[static_cast<int>(mode)][static_cast<int>(grad.type)];
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(errors_.begin(), errors_.end(), 0.0);
    for (std::int64_t image = 0; image < grad.images; ++image) {
      std::int64_t at = 0;
      for (std::int64_t index = begin; index < end; ++index) {
        const PixelRun run = runs.run(image, index);
        sum_channels(run, image % kGroup == 0, &group_[at]);
        at += run.count;
      }
      if (image % kGroup < kGroup - 1 && image < grad.images - 1) continue;
      kernels.add_compensated(group_.data(), at, sums_.data(), errors_.data());
    }
    std::int64_t at = 0;
    for (std::int64_t index = begin; index < end; ++index) {
      double* to = runs.in_map(index);
      for (std::int64_t left = runs.run(0, index).count; left > 0; --left, ++at) {
        *to += sums_[at] + errors_[at];
        to += runs.map_stride();
      }
    }
  }

 private:
  std::vector<double> group_, sums_, errors_;
};

}  // namespace

void erf_accumulate(const Gradients& grad, ErfMode mode, const ErfMap& map, Isa isa,
                    int num_threads) {
  if (grad.images == 0 || grad.channels == 0) return;
  const ErfKernels& kernels = kernels_for<ErfKernels>(isa);
  const Runs runs(grad, map);
  const std::int64_t blocks = (runs.size() + kBlock - 1) / kBlock;
  parallel_for(blocks, num_threads, [&](std::int64_t begin, std::int64_t end) {
    Block block;
    for (std::int64_t i = begin; i < end; ++i) {
      block.add(kernels, grad, mode, runs, i * kBlock, std::min(runs.size(), (i + 1) * kBlock));
    }
  });
}

}  // namespace cba
