// What the lanes of a warp copy of a row, byte by byte. Protected pages cannot show that: a piece
// of 16 bytes never crosses a page.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/dwconv_hankel_rows.h"

// The copies of the window's part of the row at `row` to `staged`, both only addresses. Writes them
// to `out` if there are no more than `most`, and returns how many there are.
extern "C" std::size_t copies_of_a_row(std::uintptr_t staged, std::uintptr_t row, int start,
                                       int length, int width, int lanes, cba::Copy* out,
                                       std::size_t most) {
  cba::copies.clear();
  const cba::HankelWindow window = {start, length, width};
  for (int lane = 0; lane < lanes; ++lane) {
    cba::hankel_stage(reinterpret_cast<unsigned char*>(staged),
                      reinterpret_cast<const __half*>(row), window, lane, lanes);
  }
  const std::size_t count = cba::copies.size();
  if (count <= most) std::memcpy(out, cba::copies.data(), count * sizeof(cba::Copy));
  return count;
}
