// Argument checks; a failed one becomes a Python ValueError in bindings.cpp.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

namespace cba {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Turns an address from Python into a pointer. A null address for data that is not empty comes from
// a fake or meta tensor; reading from it would end the process.
template <class T>
T* pointer(std::uintptr_t address, std::int64_t count, const std::string& name) {
  if (count < 0) throw std::invalid_argument(name + ": negative size " + std::to_string(count));
  if (address == 0 && count != 0) {  // `require` would make its text for every pointer
    throw std::invalid_argument(name + ": null pointer for " + std::to_string(count) +
                                " elements (a fake or meta tensor has no data)");
  }
  return reinterpret_cast<T*>(address);
}

// The element type that PyTorch and NumPy call `name`, which must be one of `allowed`.
inline DType parse_dtype(const std::string& name, std::initializer_list<const char*> allowed) {
  static constexpr const char* kNames[] = {"float32", "float64", "float16", "bfloat16", "uint8"};
  std::string text;
  for (const char* one : allowed) {
    text += (text.empty() ? "" : ", ") + std::string(one);
    if (name != one) continue;
    for (int type = 0;; ++type) {
      if (name == kNames[type]) return static_cast<DType>(type);
    }
  }
  throw std::invalid_argument("dtype must be one of " + text + ", got " + name);
}

}  // namespace cba
