// Argument checks; a failed one becomes a Python ValueError in bindings.cpp.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace cba {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Turns an address from Python into a pointer. A null address for data that is not empty means that
// somebody asked a fake or meta tensor for its data; dereferencing it would end the process.
template <class T>
T* pointer(std::uintptr_t address, std::int64_t count, const char* name) {
  require(count >= 0, std::string(name) + ": negative size " + std::to_string(count));
  require(address != 0 || count == 0, std::string(name) + ": null pointer for " +
                                          std::to_string(count) +
                                          " elements (a fake or meta tensor has no data)");
  return reinterpret_cast<T*>(address);
}

}  // namespace cba
