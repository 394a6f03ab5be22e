"""Plans what the Triton depthwise convolution launches: geometry, blocks and arguments.

Nothing runs here and Triton is not imported; tensors may be on the meta device. `dwconv_triton`
launches the plans; benchmarks/gpu_compile_table.py compiles them for GPUs that are not here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .triton_table import TABLE, Blocks

SMALL_MAP = 144  # maps of up to so many pixels are multiplied by a dense matrix
_TILES = (32, 16)
_PIECE = 64
_PROGRAMS = 1024  # the number that a weight gradient aims at; an H200 has 132 multiprocessors


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: the kernel's name.
        programs: the length of the one-dimensional grid.
        arguments: tensors and integers by name.
        constants: the `constexpr` arguments.
        blocks: the numbers of warps and stages, among others.
    """

    kernel: str
    programs: int
    arguments: dict
    constants: dict
    blocks: Blocks


class Window(NamedTuple):
    """How a row of an image is cut into tiles of outputs, each with a window of inputs.

    Attributes:
        tile: outputs of a tile.
        tiles: tiles of a row.
        columns: inputs of a window, a multiple of 16; at most 80 for pieces of 16.
        offset: how many columns left of its tile a window begins.
    """

    tile: int
    tiles: int
    columns: int
    offset: int


def family(size: tuple[int, ...]) -> str:
    """Return the forward kernel for maps (H, W): "toeplitz" for small ones, else "band"."""
    return "toeplitz" if size[0] * size[1] <= SMALL_MAP else "band"


def is_transposed(kernel_size: tuple[int, ...]) -> bool:
    """Say whether a kernel is so tall that image and kernel are better transposed.

    A band has at least 16 + kw - 1 columns, which is several times the 5 of a 51x5 kernel, but less
    than twice the 51 of a 5x51 kernel. The two copies are bound by memory.
    """
    return kernel_size[0] >= 4 * kernel_size[1]


def window(width: int, kernel_w: int, largest: int = 16) -> Window:
    """Return the cheapest way to cut rows of `width` columns.

    A window consists of equal pieces, whose size is a power of 2 from 16 to `largest`.
    """
    cuts = []
    for tile in _TILES:
        tiles = -(-width // tile)
        if tiles == 1:
            offset, columns = 0, width
        else:
            offset = _round_up(kernel_w // 2, 8)  # 8 half-precision numbers are 16 bytes
            columns = offset + tile + kernel_w // 2
        piece = min(_power_of_2(max(columns, 16)), largest)
        cuts.append(Window(tile, tiles, _round_up(columns, piece), offset))
    return min(cuts, key=lambda w: w.columns * w.tiles * w.tile)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def unit(dtype: torch.dtype, *numbers: int) -> int:
    """Return the largest power of 2 that divides all numbers, at most 16 bytes of `dtype`."""
    return math.gcd(16 // dtype.itemsize, *numbers)


def band(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *,
    flip: bool,
    relu: bool,
    upcast: bool,
) -> list[Launch]:
    """Plan y = conv(x, weight) + bias by banded products.

    Args:
        x: (N, C, H, W), its columns side by side.
        weight: (C, KH, KW), contiguous.
        bias: (C,) or None.
        y: (N, C, H, W), contiguous.
        flip: turn the kernel by 180 degrees.
        relu: max(0, y) instead of y.
        upcast: compute on float32 operands, for the interpreter.
    """
    n, c, height, width = x.shape
    kh, kw = weight.shape[1:]
    cut = window(width, kw)
    strides = _strides(x)
    tiles = -(-height // _rows(kh, height, 128 // cut.tile)) * n * cut.tiles
    chosen = TABLE["band", "few" if tiles <= 32 else "many"]
    rows = _rows(kh, height, chosen.n // cut.tile)
    row_blocks = -(-height // rows)
    scale = unit(x.dtype, width, *strides[:3])
    bands = torch.empty((c, kh, cut.columns, cut.tile), dtype=x.dtype, device=x.device)
    piece = min(chosen.k, 1 << (cut.columns.bit_length() - 1))
    return [
        Launch(
            "dwconv_band_weights_kernel",
            c * kh,
            {
                "weight_ptr": weight,
                "band_ptr": bands,
                "kernel_h": kh,
                "kernel_w": kw,
                "shift": cut.offset - kw // 2,
            },
            {
                "FLIP": flip,
                "WINDOW": cut.columns,
                "BLOCK_WINDOW": _power_of_2(cut.columns),
                "TILE_W": cut.tile,
            },
            Blocks(),
        ),
        Launch(
            "dwconv_band_kernel",
            c * -(-(row_blocks * n * cut.tiles) // chosen.m),
            {
                "x_ptr": x,
                "band_ptr": bands,
                "bias_ptr": y if bias is None else bias,
                "y_ptr": y,
                "batch": n,
                "channels": c,
                "height": height,
                "width_units": width // scale,
                "kernel_h": kh,
                "tiles": cut.tiles,
                "row_blocks": row_blocks,
                **_in_units("x", strides, scale),
            },
            {
                "UNIT": scale,
                "TILE_W": cut.tile,
                "PIECE": piece,
                "PIECES": cut.columns // piece,
                "TAIL": cut.columns % piece,  # 0 or 16 for windows of 16 to 80 columns
                "OFFSET": cut.offset,
                "ROWS": rows,
                "BLOCK_M": chosen.m,
                "HAS_BIAS": bias is not None,
                "RELU": relu,
                "UPCAST": upcast,
            },
            chosen,
        ),
    ]


def _rows(kernel_h: int, height: int, most: int) -> int:
    """Return how many output rows, at most `most`, a block of bands computes.

    A block reads kh + rows - 1 input rows: few output rows waste little work, many keep a tensor
    core busy.
    """
    rows = most
    while rows > 1 and (2 * rows > kernel_h or rows >= 2 * height):
        rows //= 2
    return rows


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return x's strides, with 0 for dimensions of size 1, whose strides may be anything."""
    return tuple(s if n > 1 else 0 for n, s in zip(x.shape, x.stride(), strict=True))


def _in_units(name: str, strides: tuple[int, ...], scale: int) -> dict[str, int]:
    return {f"{name}_stride_{d}": s // scale for d, s in zip("nch", strides, strict=False)}


def band_weight(grad: Tensor, x: Tensor, gw: Tensor, *, upcast: bool) -> list[Launch]:
    """Plan the weight gradient gw (C, KH, KW), contiguous, by banded products.

    Args:
        grad, x: (N, C, H, W), their columns side by side.
        gw: (C, KH, KW), contiguous.
        upcast: as `band`.
    """
    n, c, height, width = x.shape
    kh, kw = gw.shape[1:]
    cut = window(width, kw, _PIECE)
    piece = min(cut.columns, _PIECE)
    pieces = cut.columns // piece
    strides, grad_strides = _strides(x), _strides(grad)
    scale = unit(x.dtype, width, *strides[:3], *grad_strides[:3])
    shape = "scattered" if scale == 1 else "wide" if piece > 32 else "narrow"
    chosen = TABLE["band_weight", shape]
    rows = min(chosen.n // cut.tile, _power_of_2(kh))
    lanes = max(1, min(height, chosen.k // (n * cut.tiles)))
    chunks = -(-(lanes * n * cut.tiles) // chosen.k)
    programs = c * -(-kh // rows) * pieces
    splits = max(1, min(chunks, _PROGRAMS // programs))
    partial = torch.empty((splits, c, kh, kw, cut.tile), dtype=torch.float32, device=x.device)
    return [
        Launch(
            "dwconv_band_weight_kernel",
            programs * splits,
            {
                "grad_ptr": grad,
                "x_ptr": x,
                "partial_ptr": partial,
                "batch": n,
                "channels": c,
                "height": height,
                "width_units": width // scale,
                "kernel_h": kh,
                "kernel_w": kw,
                "tiles": cut.tiles,
                "pieces": pieces,
                "splits": splits,
                "lanes": lanes,
                **_in_units("grad", grad_strides, scale),
                **_in_units("x", strides, scale),
            },
            {
                "UNIT": scale,
                "TILE_W": cut.tile,
                "PIECE": piece,
                "OFFSET": cut.offset,
                "ROWS": rows,
                "BLOCK_K": chosen.k,
                "UPCAST": upcast,
            },
            chosen,
        ),
        _sum_partials(partial, gw, cut.offset - kw // 2, cut.columns),
    ]


def _sum_partials(partial: Tensor, gw: Tensor, shift: int, columns: int) -> Launch:
    splits, tile = partial.shape[0], partial.shape[-1]
    block = 2048 // tile
    return Launch(
        "dwconv_sum_partials_kernel",
        -(-gw.numel() // block),
        {
            "partial_ptr": partial,
            "out_ptr": gw,
            "taps": gw.numel(),
            "kernel_w": gw.shape[2],
            "shift": shift,
            "window": columns,
            "splits": splits,
        },
        {"TILE_W": tile, "BLOCK_T": block},
        Blocks(),
    )


def toeplitz(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *,
    flip: bool,
    relu: bool,
    upcast: bool,
) -> list[Launch]:
    """Plan y = conv(x, weight) + bias by a dense matrix per channel; arguments as `band`.

    The planes of x are contiguous.
    """
    n, c, height, width = x.shape
    kh, kw = weight.shape[1:]
    pixels = height * width
    length = _round_up(pixels, 16)
    strides = _strides(x)
    scale = unit(x.dtype, pixels, *strides[:2])
    chosen = TABLE["toeplitz", "few" if n <= 16 else "many"]
    matrix = torch.empty((c, pixels, length), dtype=x.dtype, device=x.device)
    rows = 16
    return [
        Launch(
            "dwconv_toeplitz_matrix_kernel",
            c * -(-pixels // rows),
            {
                "weight_ptr": weight,
                "matrix_ptr": matrix,
                "height": height,
                "width": width,
                "kernel_h": kh,
                "kernel_w": kw,
                "row_units": length // 16,
            },
            {"FLIP": flip, "UNIT": 16, "BLOCK_P": rows, "BLOCK_Q": _power_of_2(length)},
            Blocks(),
        ),
        Launch(
            "dwconv_toeplitz_product_kernel",
            c * -(-n // chosen.m) * -(-pixels // chosen.n),
            {
                "x_ptr": x,
                "matrix_ptr": matrix,
                "bias_ptr": y if bias is None else bias,
                "y_ptr": y,
                "batch": n,
                "channels": c,
                "pixel_units": pixels // scale,
                "row_units": length // 16,
                "x_stride_n": strides[0] // scale,
                "x_stride_c": strides[1] // scale,
            },
            {
                "UNIT": scale,
                "ROW_UNIT": 16,
                "BLOCK_M": chosen.m,
                "BLOCK_N": chosen.n,
                "BLOCK_K": chosen.k,
                "HAS_BIAS": bias is not None,
                "RELU": relu,
                "UPCAST": upcast,
            },
            chosen,
        ),
    ]
