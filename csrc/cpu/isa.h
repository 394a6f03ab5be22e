// Which instruction set the CPU kernels use: detected once, or forced by the environment variable
// CBA_ISA or by an argument of the call.
#pragma once

#include <string>
#include <vector>

#include "build_config.h"

namespace cba {

enum class Isa { kBaseline, kAvx2, kAvx512 };

struct IsaChoice {
  Isa isa = Isa::kBaseline;
  std::string reason;  // why this one
  std::string error;   // set if CBA_ISA names none that can run here; then no kernel runs
};

const char* isa_name(Isa isa);

// The sets this build holds, and those of them that this machine can run; best last.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

// What kernels use when the call does not say; decided on the first call.
const IsaChoice& isa_choice();

// The set for one call: `name`, or isa_choice() if it is empty. Throws std::invalid_argument with
// the name if it is unknown or cannot run here.
Isa resolve_isa(const std::string& name);

// The kernels of a set; `Kernels` has a table of functions for each set that this build holds.
template <class Kernels>
const Kernels& kernels_for(Isa isa) {
#if CBA_X86
  if (isa == Isa::kAvx512) return Kernels::kAvx512;
  if (isa == Isa::kAvx2) return Kernels::kAvx2;
#else
  (void)isa;
#endif
  return Kernels::kBaseline;
}

}  // namespace cba
