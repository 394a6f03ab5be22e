// Calls the compiled kernels with sizes, layouts, values and threads that are made from bytes: those
// of a coverage-guided fuzzer, or random ones. Everything lies in memory of its exact size, so that
// AddressSanitizer sees each access beyond it. All instruction sets, methods and numbers of threads
// must give the same answer. The arguments keep what csrc/bindings.cpp checks.
//
// CONTRIBUTING.md says how it is built and run, under libFuzzer and under ThreadSanitizer.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cpu/box_sweep.h"
#include "cpu/dwconv.h"
#include "cpu/erf_accumulate.h"
#include "cpu/erf_size.h"
#include "cpu/quantize.h"

namespace {

using cba::DType;
using std::int64_t;

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// The bytes that choose everything; zeros follow them.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  int byte() { return at_ < end_ ? *at_++ : 0; }
  int from(int least, int most) { return least + byte() % (most - least + 1); }
  bool flip() { return byte() & 1; }
  // Small integers, or (`any`) numbers of all kinds, the ones that are not finite among them.
  float number(bool any) {
    if (!any) return static_cast<float>(from(-8, 8));
    std::uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) bits = bits << 8 | byte();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  cba::Isa isa() {
    const auto all = cba::supported_isas();
    return all[byte() % all.size()];
  }

 private:
  const std::uint8_t *at_, *end_;
};

std::size_t size_of(DType type) {
  return type == DType::kUint8 ? 1 : type == DType::kFloat32 ? 4 : type == DType::kFloat64 ? 8 : 2;
}

// Memory for `count` numbers of a type, which begins at any multiple of the number's size.
struct Memory {
  Memory(DType type, int64_t count, int shift)
      : type(type), offset(shift * size_of(type)), bytes(offset + count * size_of(type)) {}
  void* data() { return bytes.data() + offset; }

  void set(int64_t i, float value) {
    const double wide = value;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto half = static_cast<std::uint16_t>(bits >> 16);  // of float16 it is some number, too
    const void* from = type == DType::kFloat32   ? static_cast<const void*>(&value)
                       : type == DType::kFloat64 ? static_cast<const void*>(&wide)
                                                 : static_cast<const void*>(&half);
    std::memcpy(bytes.data() + offset + i * size_of(type), from, size_of(type));
  }

  DType type;
  std::size_t offset;
  std::vector<std::uint8_t> bytes;
};

// Fills memory with few bytes of choices: a pattern of up to 16 numbers that is repeated.
void fill(Memory& memory, int64_t count, Choices& choices, bool any) {
  float pattern[16];
  const int length = choices.from(1, 16);
  for (int i = 0; i < length; ++i) pattern[i] = choices.number(any);
  const int step = choices.from(0, 255);
  for (int64_t i = 0; i < count; ++i) memory.set(i, pattern[(i + i / 7 * step) % length]);
}

void quantize(Choices& choices) {
  const int64_t n = choices.from(0, 255);
  const DType type = choices.flip() ? DType::kFloat32 : DType::kFloat64;
  Memory values(type, n, choices.from(0, 3));
  const int kind = choices.from(0, 2);
  for (int64_t i = 0; i < n; ++i) {
    values.set(i, kind == 0 ? choices.number(true) : static_cast<float>(choices.byte()) / 255);
  }
  std::vector<std::uint8_t> first(n), other(n);
  const int64_t bad = cba::quantize(values.data(), type, first.data(), n, cba::Isa::kBaseline, 1);
  const int threads = choices.from(1, 3);
  const int64_t same = cba::quantize(values.data(), type, other.data(), n, choices.isa(), threads);
  check(bad == same && (bad >= 0 || first == other), "quantize depends on the instruction set");
}

void box_sweep(Choices& choices) {
  const int64_t num = choices.from(1, 3), height = choices.from(1, 70), width = choices.from(1, 70);
  const int64_t pixels = num * height * width;
  std::vector<std::uint8_t> values(pixels);
  const int levels = choices.from(1, 255), coarse = choices.from(1, 9);
  std::minstd_rand random(choices.from(0, 255));
  for (int64_t i = 0; i < pixels; ++i) {
    const int drawn = i < 128 ? choices.byte() : static_cast<int>(random() >> 8);
    const bool again = i % width % coarse != 0;
    values[i] = again ? values[i - 1] : static_cast<std::uint8_t>(drawn % levels);
  }
  std::vector<double> shares(choices.from(0, 6));
  for (double& share : shares) share = choices.byte() / 256.0;
  const cba::Maps maps{values.data(), DType::kUint8, num, height, width};
  const auto count = static_cast<int64_t>(shares.size());
  const cba::Thresholds thresholds{shares.data(), count};
  std::vector<int64_t> offsets(num + 1), truth;
  for (int64_t i = 0; i < num; ++i) {
    const int boxes = choices.from(0, 2);
    for (int b = 0; b < boxes; ++b) {
      const int x = choices.byte(), y = choices.byte();
      truth.insert(truth.end(), {x, y, x + choices.byte(), y + choices.byte()});
    }
    offsets[i + 1] = offsets[i] + boxes;
  }
  const cba::GroundTruth boxes{truth.data(), offsets.data()};
  const bool all = choices.flip();
  const cba::SweepOptions options[] = {
      {cba::Isa::kBaseline, cba::Method::kPixels, 1},
      {choices.isa(), cba::Method::kSegments, choices.from(1, 3)}};
  std::vector<std::int32_t> largest[2], every[2];
  std::vector<int64_t> starts[2];
  std::vector<double> iou[2];
  for (int k = 0; k < 2; ++k) {
    largest[k].resize(num * count * 4);
    iou[k].resize(num * count);
    cba::largest_boxes(maps, thresholds, largest[k].data(), options[k]);
    cba::best_iou(maps, thresholds, boxes, all, iou[k].data(), options[k]);
    const cba::AllBoxes found(maps, thresholds, options[k]);
    every[k].resize(found.num_boxes() * 4);
    starts[k].resize(found.num_offsets());
    found.write(every[k].data(), starts[k].data(), options[k].num_threads);
  }
  check(largest[0] == largest[1], "largest boxes depend on the method");
  check(every[0] == every[1] && starts[0] == starts[1], "boxes depend on the method");
  check(iou[0] == iou[1], "IoU depends on the method");
}

// Strides of a tensor (N,C,H,W) whose rows and images may be followed by gaps; `span` is its size.
struct Strides {
  int64_t n, c, h, w, span;
};

Strides strides(Choices& choices, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t gap = choices.from(0, 2);
  Strides s;
  if (choices.flip()) {  // channels_last
    s.c = 1, s.w = c, s.h = w * c + gap, s.n = h * s.h + gap;
  } else {
    s.w = 1, s.h = w + gap, s.c = h * s.h, s.n = c * s.c + gap;
  }
  const bool empty = n == 0 || c == 0 || h == 0 || w == 0;
  s.span = empty ? 0 : 1 + (n - 1) * s.n + (c - 1) * s.c + (h - 1) * s.h + (w - 1) * s.w;
  return s;
}

void erf(Choices& choices) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBfloat16};
  const DType type = kTypes[choices.from(0, 3)];
  const int64_t images = choices.from(0, 9), channels = choices.from(1, 4);
  const int64_t height = choices.from(0, 40), width = choices.from(0, 40);
  const Strides s = strides(choices, images, channels, height, width);
  Memory values(type, s.span, choices.from(0, 3));
  fill(values, s.span, choices, choices.from(0, 3) == 0);
  const cba::Gradients grad{values.data(), type, images, channels, height,
                            width,         s.n,  s.c,    s.h,      s.w};
  std::vector<double> shares(choices.from(0, 4));
  for (double& share : shares) share = choices.byte() / 255.0;
  const cba::Isa isa = choices.isa();
  const int threads = choices.from(1, 3);
  std::vector<int64_t> first(images * shares.size()), other(first);
  const int64_t bad = cba::erf_size(grad, shares, first.data(), cba::Isa::kBaseline, 1);
  const int64_t same = cba::erf_size(grad, shares, other.data(), isa, threads);
  check(bad == same && (bad >= 0 || first == other), "ERF sizes depend on the instruction set");
  for (int64_t size : first) {
    check(bad >= 0 || (0 <= size && size <= height * width), "an ERF size beyond the map");
  }
  const auto mode = static_cast<cba::ErfMode>(choices.from(0, 2));
  const bool turned = choices.flip();
  const int64_t down = turned ? 1 : width, right = turned ? height : 1;
  std::vector<double> map(height * width), map_other(map);
  cba::erf_accumulate(grad, mode, {map.data(), down, right}, cba::Isa::kBaseline, 1);
  cba::erf_accumulate(grad, mode, {map_other.data(), down, right}, isa, threads);
  for (std::size_t i = 0; i < map.size(); ++i) {
    const bool nan = std::isnan(map[i]) && std::isnan(map_other[i]);
    check(nan || map[i] == map_other[i], "an ERF map depends on the instruction set");
  }
}

void dwconv(Choices& choices) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBfloat16};
  const DType type = kTypes[choices.from(0, 2)];
  const int64_t images = choices.from(1, 3), channels = choices.from(1, 20);
  const int64_t height = choices.from(1, 40), width = choices.from(1, 40);
  const int64_t kh = 2 * choices.from(0, 31) + 1, kw = 2 * choices.from(0, 31) + 1;
  const Strides s[3] = {strides(choices, images, channels, height, width),
                        strides(choices, 1, channels, kh, kw),
                        strides(choices, images, channels, height, width)};
  const int direction = choices.from(0, 2);  // forward, grad_x, grad_weight
  const bool any = choices.from(0, 3) == 0, relu = direction == 0 && choices.flip();
  Memory image(type, s[0].span, choices.from(0, 3)), taps(type, s[1].span, choices.from(0, 3));
  Memory result(type, s[2].span, choices.from(0, 3));
  fill(image, s[0].span, choices, any);
  fill(taps, s[1].span, choices, any);
  fill(result, s[2].span, choices, any);
  std::vector<float> bias(channels, 1.0f);
  cba::ConvCall call{images, channels, cba::ConvAlgorithm::kDirect, choices.isa(),
                     choices.from(1, 3)};
  if (choices.flip()) call.algorithm = cba::ConvAlgorithm::kFft;
  const auto planes = [&](Memory& memory, const Strides& s, int64_t h, int64_t w) {
    return cba::Planes{memory.data(), type, h, w, s.n, s.c, s.h, s.w};
  };
  const cba::Planes x = planes(image, s[0], height, width), k = planes(taps, s[1], kh, kw);
  const cba::Planes y = planes(result, s[2], height, width);
  std::vector<std::uint8_t> once;
  for (int threads : {call.num_threads, 1}) {
    call.num_threads = threads;
    if (direction == 2) {
      std::fill(taps.bytes.begin(), taps.bytes.end(), 0);
      cba::depthwise_conv2d_grad_weight(y, x, k, call);
    } else {
      const float* b = direction == 0 ? bias.data() : nullptr;
      cba::depthwise_conv2d(x, k, b, y, relu, direction == 1, call);
    }
    const auto& bytes = direction == 2 ? taps.bytes : result.bytes;
    check(once.empty() || any || once == bytes, "a convolution depends on the number of threads");
    once = bytes;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choices(data, size);
  void (*const kernels[])(Choices&) = {quantize, box_sweep, erf, dwconv};
  kernels[choices.from(0, 3)](choices);
  return 0;
}

#ifndef CBA_FUZZER  // libFuzzer brings its own
// Random inputs from two calling threads at once: kernels [inputs per thread] [seed].
int main(int count, char** arguments) {
  const int inputs = count > 1 ? std::atoi(arguments[1]) : 1000;
  const int seed = count > 2 ? std::atoi(arguments[2]) : 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([=] {
      std::mt19937 random(2 * seed + caller);
      for (int i = 0; i < inputs; ++i) {
        std::vector<std::uint8_t> bytes(random() % 512);
        for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%d inputs, nothing found\n", 2 * inputs);
}
#endif
