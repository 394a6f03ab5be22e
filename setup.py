"""Build `cba_fast._C` by calling CMake; everything about the build itself is in CMakeLists.txt.

Environment: CBA_NATIVE=0 installs pure Python; CXX and CUDACXX choose the compilers; CBA_CUDA and
CBA_CUDA_ARCHS are handed to CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PURE_PYTHON = "set CBA_NATIVE=0 to install cba_fast without compiled kernels"


def find_compiler() -> None:
    """Leave with one sentence if there is no C++ compiler at all."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise SystemExit(
            f"error: no C++ compiler was found (tried {', '.join(wanted)}); install g++ 9 or "
            f"newer, or {PURE_PYTHON}."
        )


def forget_configuration(build_dir: Path) -> None:
    """Remove what CMake remembers of an earlier configuration, but keep the compiled objects.

    The cache holds paths of pip's temporary build environment (ninja, pybind11, cmake itself) and
    the compilers of that time; none of them needs to exist now. Ninja still compiles only what
    changed.
    """
    (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
    for compiler_ids in build_dir.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(compiler_ids)


class CMakeBuild(build_ext):
    """Let CMake build each extension where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import ninja
        import pybind11

        find_compiler()
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}{sys.abiflags}"
        build_dir.mkdir(parents=True, exist_ok=True)
        forget_configuration(build_dir)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
        ]
        for name in ("CBA_CUDA", "CBA_CUDA_ARCHS"):
            if os.environ.get(name):
                configure.append(f"-D{name}={os.environ[name]}")
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        except subprocess.CalledProcessError as e:
            raise SystemExit(
                f"error: `{' '.join(e.cmd[:2])}` failed with the messages above; mend that, or "
                f"{PURE_PYTHON}."
            ) from e


native = os.environ.get("CBA_NATIVE", "1") != "0"
if not native:  # a core of an earlier editable installation would be imported all the same
    for core in (ROOT / "cba_fast").glob("_C.*.so"):
        core.unlink()
setup(
    ext_modules=[Extension("cba_fast._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild},
)
