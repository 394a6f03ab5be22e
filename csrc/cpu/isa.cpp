#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>

#include "build_config.h"
#include "common/checks.h"

#if CBA_X86
#include <cpuid.h>
#endif

namespace cba {
namespace {

#if CBA_X86
// __builtin_cpu_supports of g++ 9 and 10 does not know this feature.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool runs_here(Isa isa) {
#if CBA_X86
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma") && has_f16c();
  }
#endif
  return isa == Isa::kBaseline;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

// Returns why the set `name` cannot be used, or an empty string; a known set is written to `isa`.
std::string why_not(const std::string& name, Isa* isa) {
  for (Isa compiled : compiled_isas()) {
    if (name != isa_name(compiled)) continue;
    *isa = compiled;
    return runs_here(compiled)
               ? ""
               : "this machine cannot run it (it can run " + names(supported_isas()) + ")";
  }
  return "it is not one of " + names(compiled_isas());
}

IsaChoice choose() {
  IsaChoice choice;
  const char* forced = std::getenv("CBA_ISA");
  if (forced == nullptr || *forced == '\0') {
    choice.isa = supported_isas().back();
    choice.reason = "the best that this machine runs";
    return choice;
  }
  choice.reason = "forced by CBA_ISA";
  const std::string reason = why_not(forced, &choice.isa);
  if (!reason.empty()) choice.error = "CBA_ISA=" + std::string(forced) + ": " + reason;
  return choice;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<Isa> compiled_isas() {
#if CBA_X86
  return {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};
#else
  return {Isa::kBaseline};
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas = compiled_isas();
  isas.erase(std::remove_if(isas.begin(), isas.end(), [](Isa isa) { return !runs_here(isa); }),
             isas.end());
  return isas;
}

const IsaChoice& isa_choice() {
  static const IsaChoice choice = choose();
  return choice;
}

Isa resolve_isa(const std::string& name) {
  if (name.empty()) {
    require(isa_choice().error.empty(), isa_choice().error);
    return isa_choice().isa;
  }
  Isa isa = Isa::kBaseline;
  const std::string reason = why_not(name, &isa);
  require(reason.empty(), "isa=" + name + ": " + reason);
  return isa;
}

}  // namespace cba
