// Reads rows of a tensor into lanes, to[t * kLanes + l] = x[n, c + l, h, w + t] as float32, and
// writes them back.
//
// Include after a vec_<isa>.h.
#pragma once

#include "cpu/dwconv_kernels.h"
#include "cpu/vec_body.h"

namespace cba {
namespace {

constexpr int kLanes = Vec::kWidth;

inline int larger(int a, int b) { return a > b ? a : b; }
inline int smaller(int a, int b) { return a < b ? a : b; }

inline int lanes_of_group(const ConvParams& conv, int64_t group) {
  const int64_t left = conv.channels - group * kLanes;
  return left < kLanes ? static_cast<int>(left) : kLanes;
}

template <class T>
inline T* element(const Planes& p, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(p.data) + n * p.stride_n + c * p.stride_c + h * p.stride_h +
         w * p.stride_w;
}

// Calls f(t) for blocks of elements [t, t + kLanes) that cover `count` >= kLanes elements. The last
// block overlaps the one before it where kLanes does not divide `count`.
template <class F>
CBA_INLINE inline void for_blocks(int count, F f) {
  int t = 0;
  for (; t + kLanes <= count; t += kLanes) f(t);
  if (t < count) f(count - kLanes);
}

template <class T>
void load_lanes(const T* from, int64_t stride_c, int64_t stride_w, int lanes, int count,
                float* to) {
  if (stride_c == 1) {
    for (int t = 0; t < count; ++t) {
      const T* p = from + t * stride_w;
      (lanes == kLanes ? Vec::load(p) : Vec::load_head(p, lanes)).store(to + t * kLanes);
    }
    return;
  }
  if (lanes == kLanes && count >= kLanes) {
    return for_blocks(count, [&](int t) CBA_INLINE {
      Vec block[kLanes];
      unroll<kLanes>([&](auto l) CBA_INLINE { block[l] = Vec::load(from + l * stride_c + t); });
      transpose(block);
      unroll<kLanes>([&](auto i) CBA_INLINE { block[i].store(to + (t + i) * kLanes); });
    });
  }
  // The choices below make this three times as slow as the loop above.
  for (int t = 0; t < count; t += kLanes) {
    const int width = count - t < kLanes ? count - t : kLanes;
    Vec block[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const T* p = from + l * stride_c + t;
      block[l] = l >= lanes        ? Vec::zero()
                 : width == kLanes ? Vec::load(p)
                                   : Vec::load_head(p, width);
    }
    transpose(block);
    for (int i = 0; i < width; ++i) block[i].store(to + (t + i) * kLanes);
  }
}

// What happens to each value on its way out: max(floor, scale * value + bias). NaN stays NaN.
struct Epilogue {
  Vec scale, bias, floor;
  Vec operator()(Vec value) const { return at_least(floor, fma(value, scale, bias)); }
};

template <class T>
void store_lanes(const float* from, T* to, int64_t stride_c, int64_t stride_w, int lanes, int count,
                 const Epilogue& finish) {
  if (stride_c == 1) {
    for (int t = 0; t < count; ++t) {
      const Vec value = finish(Vec::load(from + t * kLanes));
      T* p = to + t * stride_w;
      if (lanes == kLanes) {
        value.store(p);
      } else {
        value.store_head(p, lanes);
      }
    }
    return;
  }
  if (lanes == kLanes && count >= kLanes) {
    return for_blocks(count, [&](int t) CBA_INLINE {
      Vec block[kLanes];
      unroll<kLanes>([&](auto i)
                         CBA_INLINE { block[i] = finish(Vec::load(from + (t + i) * kLanes)); });
      transpose(block);
      unroll<kLanes>([&](auto l) CBA_INLINE { block[l].store(to + l * stride_c + t); });
    });
  }
  for (int t = 0; t < count; t += kLanes) {
    const int width = count - t < kLanes ? count - t : kLanes;
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      block[i] = i < width ? finish(Vec::load(from + (t + i) * kLanes)) : Vec::zero();
    }
    transpose(block);
    for (int l = 0; l < lanes; ++l) {
      T* p = to + l * stride_c + t;
      if (width == kLanes) {
        block[l].store(p);
      } else {
        block[l].store_head(p, width);
      }
    }
  }
}

// Reads `count` elements from w on, of row h of `lanes` channels from c on.
inline void load_row(const Planes& p, int64_t n, int64_t c, int lanes, int64_t h, int64_t w,
                     int count, float* to) {
  switch (p.type) {
    case DType::kBfloat16:
      return load_lanes(element<BFloat16>(p, n, c, h, w), p.stride_c, p.stride_w, lanes, count, to);
    case DType::kFloat16:
      return load_lanes(element<Float16>(p, n, c, h, w), p.stride_c, p.stride_w, lanes, count, to);
    default:
      return load_lanes(element<float>(p, n, c, h, w), p.stride_c, p.stride_w, lanes, count, to);
  }
}

inline void store_row(const float* from, const Planes& p, int64_t n, int64_t c, int lanes,
                      int64_t h, int64_t w, int count, const Epilogue& finish) {
  switch (p.type) {
    case DType::kBfloat16:
      return store_lanes(from, element<BFloat16>(p, n, c, h, w), p.stride_c, p.stride_w, lanes,
                         count, finish);
    case DType::kFloat16:
      return store_lanes(from, element<Float16>(p, n, c, h, w), p.stride_c, p.stride_w, lanes,
                         count, finish);
    default:
      return store_lanes(from, element<float>(p, n, c, h, w), p.stride_c, p.stride_w, lanes, count,
                         finish);
  }
}

// What `group` needs when it is stored; `scale` undoes that of the transforms.
inline Epilogue epilogue_of(const ConvParams& conv, int64_t group, float scale) {
  Vec bias = Vec::zero();
  if (conv.bias != nullptr) {
    const float* from = conv.bias + group * kLanes;
    const int lanes = lanes_of_group(conv, group);
    bias = lanes == kLanes ? Vec::load(from) : Vec::load_head(from, lanes);
  }
  return {Vec::broadcast(scale), bias, Vec::broadcast(conv.floor)};
}

// Hands out pieces of a thread's scratch memory, each of which starts on a cache line. Without
// memory it only counts.
class Scratch {
 public:
  explicit Scratch(float* memory) : memory_(memory) {}
  float* take(int64_t floats) {
    float* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (floats + 15) / 16 * 16;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace cba
