"""Compile the Triton kernels for GPUs that need not be here, and say what they take of them.

    python benchmarks/gpu_compile_table.py                       # all shapes, all architectures
    python benchmarks/gpu_compile_table.py --arch sm_90 --cases band --json table.jsonl
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cba_fast.kernels import dwconv_triton, dwconv_triton_plan

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_launch(launch, arch: str) -> dict:
    kernel = dwconv_triton.load(launch.kernel)
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name], constants[name] = "constexpr", launch.constants[name]
            continue
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif value == 1 and not parameter.do_not_specialize:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    started = time.perf_counter()
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options={"num_warps": launch.blocks.warps, "num_stages": launch.blocks.stages},
    )
    seconds = time.perf_counter() - started
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    ptx = compiled.asm["ptx"]
    return {
        "kernel": launch.kernel, "arch": arch,
        "dtype": next(s for s in signature.values() if s.startswith("*"))[1:],
        "constants": {k: v for k, v in launch.constants.items()},
        "warps": launch.blocks.warps, "stages": launch.blocks.stages,
        "registers": int(found["REG"]), "stack": int(found["STACK"]), "local": int(found["LOCAL"]),
        "shared": compiled.metadata.shared,
        "mma": next(iter(re.findall(r"wgmma\.mma_async[\w.]*|mma\.sync\.aligned[\w.]*|tcgen05\.mma[\w.:]*", ptx)), "none"),
        "seconds": round(seconds,2),
    }
