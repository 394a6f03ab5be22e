#include "cpu/quantize.h"

#include <algorithm>

#include "common/parallel_for.h"
#include "cpu/quantize_kernels.h"

namespace cba {
namespace {

// Values in a piece of work. 256 KB of float32 take some 20 microseconds, much longer than to wake
// a thread.
constexpr std::int64_t kPiece = 1 << 16;

template <class Scalar>
std::int64_t run(std::int64_t (*kernel)(const Scalar*, std::uint8_t*, std::int64_t),
                 const Scalar* source, std::uint8_t* bytes, std::int64_t n, int num_threads) {
  FirstIndex first_bad;
  const std::int64_t pieces = (n + kPiece - 1) / kPiece;
  parallel_for(pieces, num_threads, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t from = begin * kPiece, to = std::min(n, end * kPiece);
    const std::int64_t bad = kernel(source + from, bytes + from, to - from);
    if (bad >= 0) first_bad.note(from + bad);
  });
  return first_bad.get();
}

}  // namespace

std::int64_t quantize(const void* source, DType dtype, std::uint8_t* bytes, std::int64_t n, Isa isa,
                      int num_threads) {
  const QuantizeKernels& kernels = kernels_for<QuantizeKernels>(isa);
  if (dtype == DType::kFloat32) {
    return run(kernels.float32, static_cast<const float*>(source), bytes, n, num_threads);
  }
  return run(kernels.float64, static_cast<const double*>(source), bytes, n, num_threads);
}

}  // namespace cba
