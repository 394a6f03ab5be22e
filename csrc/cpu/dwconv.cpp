#include "cpu/dwconv.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "common/parallel_for.h"
#include "cpu/dft_plan.h"

namespace cba {
namespace {

// Kernels with a side of at most so many taps are transformed only along the other side.
constexpr std::int64_t kWidestStrip = 7;

// From this size on huge pages are asked for; NumPy's arrays have the same bound.
constexpr std::int64_t kLargeOutput = std::int64_t{1} << 22;

constexpr float kNoFloor = -std::numeric_limits<float>::infinity();

constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Asks for pages of 2 MiB where a range holds whole ones. Fresh memory is mapped as it is written,
// and in pages of 4 KiB that takes longer than a convolution needs to write it.
void use_huge_pages(void* data, std::size_t bytes) {
#if defined(__linux__)
  const auto start = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (start + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (start + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// The scratch memory of a thread. It is kept between calls, because fresh pages would take a tenth
// of the time of a convolution.
struct ThreadMemory {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data;
  std::int64_t floats = 0;
  std::int64_t call = 0;  // the call that it is prepared for

  void reserve(std::int64_t wanted) {
    if (wanted <= floats) return;
    data.reset();
    floats = call = 0;
    const std::size_t needed = static_cast<std::size_t>(wanted) * sizeof(float);
    const std::size_t bytes = (needed + kHugePage - 1) / kHugePage * kHugePage;
    data.reset(static_cast<float*>(std::aligned_alloc(kHugePage, bytes)));
    if (data == nullptr) throw std::bad_alloc();
    use_huge_pages(data.get(), bytes);  // columns lie pages apart, which causes TLB misses
    floats = wanted;
  }
};

thread_local ThreadMemory thread_memory;  // shared by all kinds of tasks
std::atomic<std::int64_t> calls{0};

// In channels_last two groups of eight channels share each cache line of the output. They go to the
// same thread, as long as every thread has something to do.
std::int64_t items_per_unit(const ConvParams& conv, int width, std::int64_t items,
                            int num_threads) {
  constexpr int kLine = 64 / sizeof(float);
  if (conv.reduce || conv.out.stride_c != 1 || width >= kLine) return 1;
  const std::int64_t unit = kLine / width * conv.images;
  return items >= unit * num_threads ? unit : 1;
}

template <class Task>
void run(const Task& task, const ConvKernel<Task>& kernel, int width, int num_threads) {
  const std::int64_t call = ++calls;
  const ConvParams& conv = task.conv;
  const std::int64_t groups = (conv.channels + width - 1) / width;
  const std::int64_t floats = kernel.scratch(task);
  const std::int64_t items = conv.reduce ? groups : groups * conv.images;
  const std::int64_t unit = items_per_unit(conv, width, items, num_threads);
  parallel_for((items + unit - 1) / unit, num_threads, [&](std::int64_t begin, std::int64_t end) {
    ThreadMemory& memory = thread_memory;
    memory.reserve(floats);
    if (memory.call != call) kernel.prepare(task, memory.data.get());
    memory.call = call;
    kernel.run(task, begin * unit, std::min(end * unit, items), memory.data.get());
  });
}

// `taps` is the kernel: B, or the output where products are summed.
void run_fft(const ConvParams& conv, const Planes& taps, bool turned, const ConvKernels& kernels,
             int num_threads) {
  const std::int64_t height = conv.a.height, width = conv.a.width;
  const bool narrow = taps.width <= taps.height;
  if ((narrow ? taps.width : taps.height) <= kWidestStrip) {
    const Axis axis(narrow ? height : width, narrow ? taps.height : taps.width, turned,
                    conv.reduce);
    const StripTask task{conv, axis.plan(), narrow, turned};
    return run(task, kernels.strip, kernels.width, num_threads);
  }
  const Axis across(width, taps.width, turned, conv.reduce);
  const Axis down(height, taps.height, turned, conv.reduce);
  const FftTask task{conv, across.plan(), down.plan()};
  run(task, kernels.fft, kernels.width, num_threads);
}

}  // namespace

#if defined(CBA_THIN) && CBA_X86
// Builds with sanitizers have one copy of the largest kernels. Those of AVX-512 read and write
// parts of vectors by masked instructions, which sanitizers do not see.
const ConvKernels ConvKernels::kAvx2 = ConvKernels::kBaseline;
const ConvKernels ConvKernels::kAvx512 = ConvKernels::kBaseline;
#endif

ConvAlgorithm parse_conv_algorithm(const std::string& name) {
  if (name == "fft") return ConvAlgorithm::kFft;
  if (name == "direct") return ConvAlgorithm::kDirect;
  throw std::invalid_argument("algorithm must be fft or direct, got " + name);
}

void depthwise_conv2d(const Planes& x, const Planes& kernel, const float* bias, const Planes& y,
                      bool relu, bool turned, const ConvCall& call) {
  const ConvKernels& kernels = kernels_for<ConvKernels>(call.isa);
  const std::int64_t bytes =
      call.images * call.channels * y.height * y.width * (y.type == DType::kFloat32 ? 4 : 2);
  if (bytes >= kLargeOutput) use_huge_pages(y.data, bytes);
  const ConvParams conv{x,           kernel,        y,     bias,
                        call.images, call.channels, false, relu ? 0.0f : kNoFloor};
  if (call.algorithm == ConvAlgorithm::kFft) {
    return run_fft(conv, kernel, turned, kernels, call.num_threads);
  }
  run(DirectTask{conv, turned}, kernels.direct, kernels.width, call.num_threads);
}

void depthwise_conv2d_grad_weight(const Planes& grad, const Planes& x, const Planes& kernel,
                                  const ConvCall& call) {
  const ConvKernels& kernels = kernels_for<ConvKernels>(call.isa);
  if (call.algorithm == ConvAlgorithm::kFft) {
    const ConvParams conv{x, grad, kernel, nullptr, call.images, call.channels, true, kNoFloor};
    return run_fft(conv, kernel, false, kernels, call.num_threads);
  }
  const ConvParams conv{grad, x, kernel, nullptr, call.images, call.channels, true, kNoFloor};
  run(DirectTask{conv, false}, kernels.direct, kernels.width, call.num_threads);
}

}  // namespace cba
