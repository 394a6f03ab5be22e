// A module with the CUDA half of the compiled core, with emulated kernels, and with functions by
// which tests control the emulator.
#include <dlfcn.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "emulator.h"
#include "races.h"
#include "racing_selftest.h"

namespace py = pybind11;
namespace races = emulator::races;

void bind_selftest(py::module_& m);

namespace {

// addr2line takes addresses in the code as offsets from the beginning of this module.
std::uintptr_t module_begin() {
  Dl_info info;
  dladdr(reinterpret_cast<const void*>(emulator::run), &info);
  return reinterpret_cast<std::uintptr_t>(info.dli_fbase);
}
std::uintptr_t offset_of(races::Site site) {
  return reinterpret_cast<std::uintptr_t>(site) - module_begin();
}

// Returns (kind, whether a copy under way does it, offset of the site, block, thread).
py::tuple described(const races::Access& access) {
  static const char* const kKinds[] = {"read", "write", "atomic"};
  return py::make_tuple(kKinds[static_cast<int>(access.kind)], access.under_way,
                        offset_of(access.site), access.block, access.thread);
}

// Returns for each race the offset of its kernel, whether it is in shared memory, and two accesses.
py::list found_races() {
  if (!races::are_sought()) throw std::logic_error("these kernels are not instrumented");
  py::list all;
  for (const races::Race& race : races::found()) {
    all.append(py::make_tuple(offset_of(race.kernel), race.shared, described(race.before),
                              described(race.after)));
  }
  return all;
}

std::vector<std::uintptr_t> ordering_sites() {
  std::vector<std::uintptr_t> all;
  for (const races::Site site : races::ordering()) all.push_back(offset_of(site));
  return all;
}

void discount(const std::vector<std::uintptr_t>& offsets) {
  std::vector<races::Site> sites;
  for (const std::uintptr_t offset : offsets) {
    sites.push_back(reinterpret_cast<races::Site>(module_begin() + offset));
  }
  races::discount(sites);
}

py::tuple checked_words() { return py::make_tuple(races::checked(false), races::checked(true)); }

std::vector<std::string> selftest_races() {
  std::vector<std::string> names;
  for (const RacingPair& pair : racing_pairs) names.emplace_back(pair.name);
  return names;
}

void selftest_race(const std::string& name, std::uintptr_t data, bool right) {
  for (const RacingPair& pair : racing_pairs) {
    if (name != pair.name) continue;
    if (run_racing(pair, reinterpret_cast<int*>(data), right) == cudaSuccess) return;
    throw std::runtime_error(cudaGetErrorString(cudaErrorLaunchFailure));
  }
  throw std::invalid_argument(name);
}

}  // namespace

PYBIND11_MODULE(cuda_emulated, m) {
  bind_cuda(m);
  bind_selftest(m);
  m.def("set_order", emulator::set_order, py::arg("order"));
  m.def("note_copies", emulator::note_copies);
  m.def("noted_copies", emulator::noted_copies);
  m.def("seeks_races", races::are_sought);
  m.def("found_races", found_races);
  m.def("ordering_sites", ordering_sites);
  m.def("discount", discount, py::arg("offsets"));
  m.def("checked_words", checked_words);  // in global and in shared memory
  m.def("selftest_race", selftest_race, py::arg("name"), py::arg("data"), py::arg("right"));
  m.def("selftest_races", selftest_races);
}
