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
  std::string reason;  // why it was chosen
  std::string error;   // set if CBA_ISA names a set that cannot run here; then no kernel runs
};

const char* isa_name(Isa isa);

// The sets that this build has, and those of them that this machine can run; the best is last.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

// The set that kernels use unless a call names one; decided once.
const IsaChoice& isa_choice();

// The set for one call: `name`, or isa_choice() if it is empty. Throws std::invalid_argument if the
// set is unknown or cannot run here.
Isa resolve_isa(const std::string& name);

// The kernels of a set. `Kernels` is a table of functions, with a constant for each set of this
// build.
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
