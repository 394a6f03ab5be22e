"""``cba-fast info``: what was built, which backend each op uses and why, and whose measurements."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import click
import torch
from rich import box

import cba_fast
import cba_fast.ops  # fills the registry of backend tables

from ...bench.dwconv_contest import DIRECTIONS, DTYPES, Case
from ...bench.tune_measure import LAYOUTS
from ...kernels import native
from ...ops import choice_table
from ...ops.backends import BackendTable
from ...ops.choice_table import Call
from ...ops.dwconv_choice import explain
from ..options import option
from ..tables import new_table, print_tables

DISTRIBUTIONS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "triton": ("triton",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "numpy": ("numpy",),
}


@click.command()
@option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@option("--bug-report", "bug_report", is_flag=True, help="Print what a bug report needs, to paste.")
@option(
    "--case",
    "cases",
    multiple=True,
    metavar="NxCxHxW_kKHxKW",
    help="Also show how a convolution, such as 1x128x96x96_k31x31, is computed; may be repeated.",
)
def command(as_json: bool, bug_report: bool, cases: tuple[str, ...]):
    """Show versions, what was built, and which backend each op uses, and why.

    For the convolution it names the table of measurements (`cba-fast tune`) that is asked.
    """
    info = collect(cases)
    if bug_report:
        click.echo(report_of(info))
    elif as_json:
        click.echo(json.dumps(info, indent=1))
    else:
        show(info)


def collect(cases: Sequence[str] = ()) -> dict:
    """Return what ``cba-fast info --json`` prints."""
    chosen = [choice for case in cases for choice in choices(Case.parse(case))]
    reason = native.unavailable()
    return {
        "versions": versions(),
        "cpu": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "native": {"unavailable": reason}
        if reason
        else native.build_info() | {"cuda_unavailable": native.cuda_unavailable()},
        "cuda": cuda_devices(),
        "ops": {op: backends(op, table) for op, table in op_tables().items()},
        "convolution_tables": {
            device: [
                {"path": str(t.path), "source": t.source, "cases": len(t.cases)}
                for t in choice_table.tables(torch.empty(0, device=device).device)
            ]
            for device in devices()
        },
        "choices": chosen,
    }


def report_of(info: dict) -> str:
    """Return Markdown for a bug report: `collect`'s facts, environment variables, what to add."""
    names = ("CBA_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_")
    info = info | {"environment": {k: v for k, v in os.environ.items() if k.startswith(names)}}
    facts = json.dumps(info, indent=1).replace(str(Path.home()), "~")
    return (
        "**What I ran** (the whole command, or a few lines of Python):\n\n"
        "**What I expected, and what happened** (the whole message):\n\n"
        "<details><summary>cba-fast info</summary>\n\n"
        f"```json\n{facts}\n```\n\n</details>"
    )


def devices() -> list[str]:
    """Return the kinds of devices that are here."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def choices(case: Case) -> Iterator[dict[str, str]]:
    """Yield the method of the automatic choice for each way to call a convolution, and its source.

    The source is the file of a table, or the rule for calls that no table knows.
    """
    shape = (case.batch, case.channels, case.height, case.width)
    for device, dtype, layout in product(devices(), DTYPES.values(), LAYOUTS.values()):
        image = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        for direction in DIRECTIONS:
            method, source = explain(direction, image, (case.kh, case.kw))
            call = str(Call.of(direction, image, (case.kh, case.kw)))
            yield {"device": device, "call": call, "method": method, "source": source}


def versions() -> dict[str, str | None]:
    """Return the versions of this package, Python and what it builds on; None: not installed."""
    found: dict[str, str | None] = {"cba_fast": cba_fast.__version__}
    found["python"] = platform.python_version()
    for name, distributions in DISTRIBUTIONS.items():
        found[name] = None
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def cuda_devices() -> dict:
    """Return PyTorch's CUDA version, the devices it sees, and why it sees none."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        reason = None
    elif torch.version.cuda is None:
        reason = "this PyTorch is built without CUDA"
    else:
        reason = "PyTorch sees no CUDA device"
    return {"torch_cuda": torch.version.cuda, "devices": names, "reason": reason}


def op_tables() -> dict[str, BackendTable]:
    """Return the backend tables by op; importing `cba_fast.ops` filled the registry."""
    return dict(sorted(BackendTable.registry.items()))


def sample(op: str, device: str) -> tuple:
    """Return small arguments of `op`, as its backends' predicates take them."""
    image = torch.zeros(1, 8, 16, 16, device=device)
    if op.startswith("depthwise_conv2d"):
        return image, (13, 13), "auto"
    if op == "erf_size":
        return (image,)
    if op == "erf_accumulate":
        return image, torch.zeros(16, 16, dtype=torch.float64, device=device)
    return (image[0],)  # score maps


def backends(op: str, table: BackendTable) -> dict:
    """Return which backend `op` uses on each kind of device, and why not the others.

    Returns:
        ``backends``: for each, why it never runs here, or None; ``cpu`` and (with a GPU) ``cuda``:
        the backend that small float32 arguments get; ``not_used``: for each of these the reasons
        why better or other backends refuse them.
    """
    used: dict[str, str] = {}
    not_used: dict[str, dict[str, str]] = {}
    for device in devices():
        arguments = sample(op, device)
        used[device] = table.resolve(None, *arguments)
        reasons = {name: table.reason_unless_named(name, *arguments) for name in table.backends}
        not_used[device] = {
            name: reason or f"{used[device]} comes first"
            for name, reason in reasons.items()
            if name != used[device]
        }
    unavailable = {b.name: b.unavailable() for b in table.backends.values()}
    return {"backends": unavailable, "not_used": not_used, **used}


def show(info: dict) -> None:
    """Print `info` as tables."""
    facts = new_table("", "", show_header=False, box=None)
    for name, version in info["versions"].items():
        facts.add_row(name, version or "not installed")
    cpu = info["cpu"]
    facts.add_row("CPU", f"{cpu['machine']}, {cpu['cores']} cores, {cpu['threads']} threads used")
    for name, text in describe_native(info["native"]):
        facts.add_row(name, text)
    cuda = info["cuda"]
    facts.add_row("CUDA devices", ", ".join(cuda["devices"]) or f"none: {cuda['reason']}")
    for device, tables in info["convolution_tables"].items():
        texts = [f"{t['path']} ({t['source']}, {t['cases']} cases)" for t in tables]
        here = f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else device
        none = f"no measurements ({here}): `cba-fast tune` makes some"
        facts.add_row("Convolution", "\n".join(texts) or none)
    table = new_table("op", "device", "backend", "others", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for op, entry in info["ops"].items():
        for device, reasons in entry["not_used"].items():
            others = "\n".join(f"{name}: {reason}" for name, reason in reasons.items())
            table.add_row(op, device, entry[device], others)
    chosen = new_table("device", "call", "method", "from", box=box.SIMPLE_HEAD)
    sources = {t["path"]: t["source"] for ts in info["convolution_tables"].values() for t in ts}
    for choice in info["choices"]:
        device, call, method, path = choice.values()
        chosen.add_row(device, call, method, sources.get(path, path))
    print_tables(facts, table, *[chosen] * bool(info["choices"]), width=80)


def describe_native(build: dict) -> list[tuple[str, str]]:
    """Return name and text of each fact about the compiled core."""
    if "unavailable" in build:
        return [("Compiled core", f"none: {build['unavailable']}")]
    compiled = ", ".join(build["isas_compiled"])
    in_use = f"{build['isa']}: " if build["isa"] else "none: "
    if build["cuda_archs"]:
        cuda = f"{build['cuda_archs']} ({build['cuda_compiler']})"
        if build["cuda_unavailable"]:
            cuda += f"; they cannot run: {build['cuda_unavailable']}"
    else:
        cuda = f"none: {build['cuda_reason']}"
    return [
        ("Compiled core", f"{build['compiler']}, for {compiled}"),
        ("Instruction set", in_use + build["isa_reason"]),
        ("CUDA kernels", cuda),
    ]
