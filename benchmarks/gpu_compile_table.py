"""Compile the Triton kernels for GPUs that need not be here; print their registers and memory.

    python benchmarks/gpu_compile_table.py                        # everything: some ten minutes
    python benchmarks/gpu_compile_table.py --show benchmarks/results/gpu_compile/triton-3.8.jsonl
    python benchmarks/gpu_compile_table.py --arch sm_90 --kernel dwconv_band_kernel --dtype bf16
    python benchmarks/gpu_compile_table.py --json benchmarks/results/gpu_compile/triton-3.8.jsonl

The kernels are those that `kernels/dwconv_gpu/triton_plan.py` would launch for the shapes below,
with the same types, alignments, constants and options, and those of `kernels/gpu/triton_pixels.py`.
Exits with 1 if a kernel spills, does not fit into the shared memory, or fuses what it must not.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # avoids a warning; the option below counts

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cba_fast.kernels import dwconv_triton
from cba_fast.kernels.dwconv_gpu import triton_plan
from cba_fast.kernels.dwconv_gpu.triton_plan import Launch
from cba_fast.kernels.dwconv_gpu.triton_table import ARCHS, SHARED_MEMORY, Blocks
from cba_fast.kernels.gpu import triton_pixels

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RECORDED = ("bf16",)  # fp16 differs only in the type of the instructions
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int64: "i64",
}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_COLUMNS = (
    *("kernel", "arch", "dtype", "case", "constants", "warps/stages", "registers", "spills"),
    *("shared", "matrix instruction"),
)
_INSTRUCTIONS = re.compile(r"wgmma\.mma_async|mma\.sync\.aligned\.m\d+n\d+k\d+|tcgen05\.mma")
# These kernels must have no fused operations; one that is found stands in the place of the others.
_PIXELS, _FUSED = ("quantize_kernel", "erf_accumulate_kernel"), re.compile(r"fma\.rn\S*")

# (N, C, H, W) and kernel: RepLKNet-31B at 384 pixels, cases with few tiles and few images, a strip
# of SLaK-T, the study's largest kernel and the largest of all, and widths that 8 does not divide.
CASES = [
    ((64, 128, 96, 96), (31, 31)),
    ((64, 256, 48, 48), (29, 29)),
    ((64, 512, 24, 24), (27, 27)),
    ((64, 1024, 12, 12), (13, 13)),
    ((1, 128, 8, 96), (31, 31)),
    ((1, 128, 8, 24), (27, 27)),
    ((1, 1024, 12, 12), (13, 13)),
    ((64, 124, 96, 96), (51, 5)),
    ((64, 128, 96, 96), (51, 51)),
    ((8, 64, 100, 100), (63, 63)),
    ((8, 64, 50, 50), (13, 13)),
    ((8, 64, 63, 63), (9, 9)),
    ((8, 64, 7, 7), (13, 13)),
]


def launches(shape, kernel_size, dtype) -> Iterator[Launch]:
    """Yield the launches of the forward pass and the weight gradient.

    The input gradient is the forward pass with turned kernels and no bias.
    """
    if triton_plan.is_transposed(kernel_size):
        shape, kernel_size = (*shape[:2], shape[3], shape[2]), kernel_size[::-1]
    x = torch.empty(shape, dtype=dtype, device="meta")
    weight = torch.empty((shape[1], *kernel_size), dtype=dtype, device="meta")
    bias = weight[:, 0, 0].contiguous()
    forward = getattr(triton_plan, triton_plan.family(shape[2:]))
    yield from forward(x, weight, bias, x, flip=False, relu=False, upcast=False)
    yield from triton_plan.band_weight(x, x, weight, upcast=False)


def pixel_launches() -> Iterator[Launch]:
    """Yield the launches of `triton_pixels` for 64 gradients of 3x384x384 and maps of 384x384."""
    grad = torch.empty(64, 3, 384, 384, device="meta")
    out = torch.empty(384, 384, dtype=torch.float64, device="meta")
    maps = grad[:, 0].contiguous()
    results = maps.to(torch.uint8), torch.empty(1, dtype=torch.int64, device="meta")
    sizes = (64, 3, 384, out.numel(), *grad.stride(), *out.stride())
    for name, values, constants in [
        ("quantize_kernel", (maps, *results, maps.numel()), {"BLOCK": 1024}),
        *(
            ("erf_accumulate_kernel", (grad, out, *sizes), {"MODE": m, "GROUP": 8, "BLOCK": 128})
            for m in ("relu", "square")
        ),
    ]:
        arguments = dict(zip(getattr(triton_pixels, name).arg_names, values))
        yield Launch(name, 0, arguments, constants, Blocks())


def compile_launch(launch: Launch, arch: str) -> dict:
    """Compile the kernel of a launch; return its record of registers, memory and instructions."""
    fused = launch.kernel not in _PIXELS
    kernel = (dwconv_triton.load if fused else partial(getattr, triton_pixels))(launch.kernel)
    signature, constants, attributes = {}, dict(launch.constants), {}
    for position, parameter in enumerate(kernel.params):
        value = launch.arguments.get(parameter.name)
        if value is None:
            kind = "constexpr"
        elif isinstance(value, torch.Tensor):
            kind = "*" + _NAMES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif value == 1 and not parameter.do_not_specialize:
            kind, constants[parameter.name] = "constexpr", 1
        else:
            kind = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options={
            "num_warps": launch.blocks.warps,
            "num_stages": launch.blocks.stages,
            "enable_fp_fusion": fused,
        },
    )
    found = (_INSTRUCTIONS if fused else _FUSED).search(compiled.asm["ptx"])
    return {
        "kernel": launch.kernel,
        "arch": arch,
        "constants": launch.constants,
        "warps": launch.blocks.warps,
        "stages": launch.blocks.stages,
        **resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "mma": found.group() if found else None,
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Return the ``registers`` per thread and the bytes of ``stack`` and ``local`` memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    names = {"REG": "registers", "STACK": "stack", "LOCAL": "local"}
    found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage.stdout)
    if {name for name, _ in found} != set(names):
        raise ValueError(f"cuobjdump says no resources: {usage.stdout + usage.stderr}")
    return {names[name]: int(value) for name, value in found}


def distinct(dtypes, archs) -> Iterator[tuple[str, Launch, str, str]]:
    """Yield each distinct kernel once: its first case, launch, dtype and architecture."""
    for arch, name in product(archs, dtypes):
        seen = set()
        for shape, kernel_size in CASES:
            case = f"{'x'.join(map(str, shape))}_k{kernel_size[0]}x{kernel_size[1]}"
            for launch in launches(shape, kernel_size, DTYPES[name]):
                if identity(launch) not in seen:
                    seen.add(identity(launch))
                    yield case, launch, name, arch
    for arch, launch in product(archs, pixel_launches()):
        yield "64x3x384x384", launch, "fp32", arch


def identity(launch: Launch) -> str:
    """Return a text that is equal for launches of the same compiled kernel, but for the dtype."""
    return json.dumps([launch.kernel, launch.constants, launch.blocks.warps, launch.blocks.stages])


def is_sample(case: str, launch: Launch, dtype: str, arch: str) -> bool:
    """Say whether the tests compile it: band products for all targets, other kernels for one."""
    if launch.kernel in _PIXELS:
        return arch == "sm_90"
    if launch.kernel in ("dwconv_band_kernel", "dwconv_band_weight_kernel"):
        return case == "64x128x96x96_k31x31"
    cases = ("64x1024x12x12_k13x13", "64x128x96x96_k31x31")
    return case in cases and dtype == "bf16" and arch == "sm_90"


def faults(record: dict) -> list[str]:
    """Return the faults of a kernel: spills, or more shared memory than a program can have."""
    found = []
    if record["stack"] or record["local"]:
        found.append(f"{record['stack'] + record['local']} bytes of stack")
    if record["shared"] > SHARED_MEMORY[record["arch"]]:
        found.append(f"{record['shared']} bytes of shared memory")
    if record.get("kernel") in _PIXELS and record["mma"]:
        found.append(f"a fused operation, {record['mma']}")
    return found


def row(record: dict) -> str:
    constants = {k: int(v) if isinstance(v, bool) else v for k, v in record["constants"].items()}
    constants = " ".join(f"{k}={v}" for k, v in constants.items() if k != "UPCAST")
    cells = [
        *(record["kernel"], record["arch"], record["dtype"], record["case"], constants),
        f"{record['warps']}/{record['stages']}",
        *(record["registers"], record["stack"] + record["local"], record["shared"]),
        record["mma"] or "",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHS, help="Default: all.")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="Default: bf16.")
    parser.add_argument("--kernel", action="append", help="Default: all.")
    parser.add_argument("--sample", action="store_true", help="What the tests compile.")
    parser.add_argument("--json", type=Path, help="Write the records as JSON lines.")
    parser.add_argument("--show", type=Path, help="Print a file of records; compile nothing.")
    args = parser.parse_args()
    print("| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|")
    if args.show:
        print("\n".join(row(json.loads(line)) for line in args.show.read_text().splitlines()))
        return 0
    found, bad = [], 0
    for case, launch, dtype, arch in distinct(args.dtype or RECORDED, args.arch or ARCHS):
        if args.kernel and launch.kernel not in args.kernel:
            continue
        if args.sample and not is_sample(case, launch, dtype, arch):
            continue
        found.append({"case": case, "dtype": dtype, **compile_launch(launch, arch)})
        print(row(found[-1]), flush=True)
        for fault in faults(found[-1]):
            bad += 1
            print(f"{launch.kernel} for {arch}, {case}: {fault}", file=sys.stderr)
    if args.json:
        versions = {"triton": triton.__version__, "torch": torch.__version__}
        lines = [json.dumps({"bench": "gpu_compile", **r, "versions": versions}) for r in found]
        args.json.write_text("\n".join(lines) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
