// Plain C++, compiled for the oldest machine of the architecture.
#include "cpu/quantize_body.h"

namespace cba {
namespace {

template <class T>
struct Block {
  using Scalar = T;
  static constexpr int kWidth = 16;
  T values[kWidth];

  static Block load(const T* source) {
    Block block;
    for (int i = 0; i < kWidth; ++i) block.values[i] = source[i];
    return block;
  }
  bool in_unit_interval() const {
    bool inside = true;
    for (int i = 0; i < kWidth; ++i) inside &= (values[i] >= T(0)) & (values[i] <= T(1));
    return inside;
  }
  void store_bytes(uint8_t* bytes) const {
    for (int i = 0; i < kWidth; ++i) {
      bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(T(255) * values[i]));
    }
  }
};

}  // namespace

const QuantizeKernels QuantizeKernels::kBaseline = {quantize_range<Block<float>>,
                                                    quantize_range<Block<double>>};

}  // namespace cba
