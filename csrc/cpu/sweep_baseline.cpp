// Plain C++, compiled for the oldest machine of the architecture.
#include "cpu/sweep_body.h"

namespace cba {
namespace {

struct Bytes16 {
  static constexpr int32_t kWidth = 16;
  uint8_t bytes[kWidth];

  template <class F>
  static Bytes16 each(F f) {
    Bytes16 result;
    for (int32_t i = 0; i < kWidth; ++i) result.bytes[i] = f(i);
    return result;
  }
  static Bytes16 load(const uint8_t* p) {
    return each([=](int32_t i) { return p[i]; });
  }
  static Bytes16 load_first(const uint8_t* p, int32_t n) {
    return each([=](int32_t i) { return i < n ? p[i] : uint8_t{0}; });
  }
  static Bytes16 all(uint8_t value) {
    return each([=](int32_t) { return value; });
  }
  void store(uint8_t* p) const {
    for (int32_t i = 0; i < kWidth; ++i) p[i] = bytes[i];
  }
  friend Bytes16 min(Bytes16 a, Bytes16 b) {
    return each([=](int32_t i) { return a.bytes[i] < b.bytes[i] ? a.bytes[i] : b.bytes[i]; });
  }
  friend Bytes16 max(Bytes16 a, Bytes16 b) {
    return each([=](int32_t i) { return a.bytes[i] > b.bytes[i] ? a.bytes[i] : b.bytes[i]; });
  }
  friend uint64_t above(Bytes16 a, Bytes16 b) {
    uint64_t bits = 0;
    for (int32_t i = 0; i < kWidth; ++i) bits |= uint64_t{a.bytes[i] > b.bytes[i]} << i;
    return bits;
  }
};

}  // namespace

const SweepKernels SweepKernels::kBaseline = kernels_of<Bytes16>();

}  // namespace cba
