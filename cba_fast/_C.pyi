"""The compiled core. Tensors are passed as addresses; use `cba_fast.ops`, which checks them."""

from collections.abc import Callable, Sequence

# (height, width, strides of images, channels, rows and columns), strides in elements.
_Planes = tuple[int, int, Sequence[int]]
# (address, dtype, (N, C, H, W), strides), strides in elements.
_Grad = tuple[int, str, Sequence[int], Sequence[int]]
# (address, strides of images, channels and rows), strides in elements.
_Images = tuple[int, Sequence[int]]

def build_info() -> dict: ...
def use_openmp(parallel: int) -> None: ...
def parallel_for(n: int, num_threads: int, f: Callable[[int, int], object]) -> None: ...
def quantize(source: int, dtype: str, bytes: int, n: int, isa: str, num_threads: int) -> int: ...
def erf_size(
    grad: _Grad, shares: Sequence[float], sizes: int, isa: str, num_threads: int
) -> int: ...
def erf_accumulate(
    grad: _Grad, mode: str, map: int, map_strides: Sequence[int], isa: str, num_threads: int
) -> None: ...
def largest_boxes(
    maps: int,
    num: int,
    height: int,
    width: int,
    thresholds: int,
    num_thresholds: int,
    boxes: int,
    num_threads: int,
    dtype: str = "uint8",
    isa: str = "",
    method: str = "auto",
) -> int: ...
def best_iou(
    maps: int,
    num: int,
    height: int,
    width: int,
    thresholds: int,
    num_thresholds: int,
    truth_boxes: int,
    truth_offsets: int,
    all_contours: bool,
    iou: int,
    num_threads: int,
    dtype: str = "uint8",
    isa: str = "",
    method: str = "auto",
) -> int: ...

class DepthwiseConv:
    def __init__(
        self,
        direction: str,
        first: _Planes,
        second: _Planes,
        out: _Planes,
        dtype: str,
        images: int,
        channels: int,
        algorithm: str,
        isa: str,
        relu: bool = False,
    ) -> None: ...
    def run(self, first: int, second: int, bias: int, out: int, num_threads: int, /) -> None: ...

class AllBoxes:
    def __init__(
        self,
        maps: int,
        num: int,
        height: int,
        width: int,
        thresholds: int,
        num_thresholds: int,
        num_threads: int,
        dtype: str = "uint8",
        isa: str = "",
        method: str = "auto",
    ) -> None: ...
    @property
    def first_bad(self) -> int: ...
    @property
    def num_boxes(self) -> int: ...
    def write(self, boxes: int, offsets: int, num_threads: int) -> None: ...

# The functions below exist only in a build with CUDA kernels.
def cuda_versions() -> tuple[int, int]: ...
def quantize_cuda(
    source: int, dtype: str, bytes: int, n: int, first_bad: int, device: int, stream: int
) -> None: ...
def box_sweep_cuda_nodes(height: int, width: int) -> int: ...
def box_sweep_cuda(
    maps: int,
    shape: Sequence[int],
    all_contours: bool,
    pairs: int,
    num_pairs: int,
    nodes: int,
    done: int,
    boxes: int,
    starts: int,
    counts: int,
    iou: int,
    truth: int,
    offsets: int,
    device: int,
    stream: int,
) -> None: ...
def erf_size_cuda_scratch(grad: _Grad) -> int: ...
def erf_size_cuda(
    grad: _Grad, shares: Sequence[float], sizes: int, scratch: int, device: int, stream: int
) -> None: ...
def erf_accumulate_cuda(
    grad: _Grad, mode: str, map: int, map_strides: Sequence[int], device: int, stream: int
) -> None: ...
def dwconv_fma_cuda(
    x: _Images,
    kernel: int,
    bias: int,
    y: _Images,
    dtype: str,
    sizes: Sequence[int],
    turned: bool,
    relu: bool,
    tile: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def dwconv_hankel_cuda(
    x: _Images,
    kernel: int,
    bias: int,
    y: _Images,
    dtype: str,
    sizes: Sequence[int],
    turned: bool,
    relu: bool,
    tile: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def dwconv_strip_cuda(
    x: _Images,
    kernel: int,
    bias: int,
    y: _Images,
    dtype: str,
    sizes: Sequence[int],
    turned: bool,
    relu: bool,
    tile: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def dwconv_fma_weight_cuda(
    grad: _Images,
    x: _Images,
    kernel: int,
    partials: int,
    splits: int,
    dtype: str,
    sizes: Sequence[int],
    tile: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def dwconv_hankel_weight_cuda(
    grad: _Images,
    x: _Images,
    kernel: int,
    partials: int,
    splits: int,
    dtype: str,
    sizes: Sequence[int],
    tile: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
