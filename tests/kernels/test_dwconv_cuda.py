"""What all CUDA kernels of the depthwise convolution promise: images as they may lie in memory."""

import ctypes
import itertools
import mmap
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.kernels import dwconv_cuda
from cba_fast.kernels.dwconv_gpu import cuda_fma as fma
from cba_fast.kernels.dwconv_gpu import cuda_hankel as hankel
from cba_fast.kernels.dwconv_gpu import cuda_strip as strip
from cba_fast.kernels.dwconv_gpu.cuda_hankel import Tile, WeightTile

pytestmark = pytest.mark.usefixtures("empty_is_nan")
NCHW = torch.contiguous_format


@dataclass(frozen=True)
class Kernels:
    """The kernels of a module, a kernel size for them, and tiles other than the chosen ones."""

    module: ModuleType
    size: tuple[int, int]
    tiles: tuple = ()
    weight_tiles: tuple = ()

    @property
    def dtype(self):
        return torch.float32 if self.module is fma else torch.bfloat16

    def random(self, *shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.dtype)

    def weight(self, channels):
        return self.random(channels, 1, *self.size, seed=1)

    def check(self, x, grad=None, memory_format=NCHW, weight=None):
        """Compare all directions and tiles with the definition."""
        weight = (self.weight(x.shape[1]) if weight is None else weight).to(x.device)
        bias = self.random(x.shape[1], seed=2).to(x.device)
        grad = x if grad is None else grad
        for tile in ({}, *({"using": tile} for tile in self.tiles)):
            y = self.module.forward(x, weight, bias, memory_format, **tile)
            assert_forward(y, x, weight, bias)
            gx = self.module.forward(grad, weight, None, memory_format, flip=True, **tile)
            assert_grad_x(gx, grad, weight)
            for result in (y, gx):
                assert result.is_contiguous(memory_format=memory_format)
        if self.module is not strip:
            for tile in ({}, *({"using": tile} for tile in self.weight_tiles)):
                gw = self.module.grad_weight(grad, x, self.size, **tile)
                assert_grad_weight(gw, grad, x)
                assert gw.is_contiguous()


TILES = (Tile(2, 3, 4), Tile(2, 12, 1), Tile(1, 2, 8, 2))
FAMILIES = {
    "fma": Kernels(fma, (5, 7)),
    "hankel": Kernels(hankel, (7, 9), TILES, (WeightTile(1, 2, 1, 4, 2), WeightTile(1, 2, 2))),
    "lying strips": Kernels(strip, (5, 13)),
    "standing strips": Kernels(strip, (13, 5)),
}
each_family = pytest.mark.parametrize("kernels", FAMILIES.values(), ids=FAMILIES)
one_order = pytest.mark.parametrize("emulated_cuda", [2], ids=["shuffled"], indirect=True)

LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1, :1].expand_as(x),
    "expanded rows": lambda x: x[:, :, :1].expand_as(x),
    "expanded pixels": lambda x: x[..., :1, :1].expand_as(x),
    "reversed dimensions": lambda x: x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    "steps": lambda x: x[:, :, ::2, 1::2],
    "rows": lambda x: x[::2, ::2, 3:-2],
    "column": lambda x: x[:, :, :, 4:5],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_family
@one_order
def test_layouts(emulated_cuda, kernels, layout):
    x, grad = (LAYOUTS[layout](kernels.random(3, 4, 14, 11, seed=s)) for s in (0, 3))
    weight = LAYOUTS["transposed"](kernels.weight(x.shape[1]))
    for memory_format in (NCHW, torch.channels_last):
        kernels.check(x, grad, memory_format, weight)


@pytest.mark.parametrize("width", [8, 13, 16])  # stored by vectors, by elements, by pairs
@each_family
@one_order
def test_rectified_results(emulated_cuda, kernels, width):
    for dtype in {kernels.dtype, torch.float32 if kernels.module is fma else torch.float16}:
        x, weight = kernels.random(3, 2, 14, width).to(dtype), kernels.weight(2).to(dtype)
        x[0, 0, 0, 0] = torch.nan
        bias = kernels.random(2, seed=2).to(dtype)
        for tile in ({}, *({"using": tile} for tile in kernels.tiles)):
            y, rectified = (
                kernels.module.forward(x, weight, bias, NCHW, relu=relu, **tile)
                for relu in (False, True)
            )
            assert y.isnan().any()
            assert (y < 0).any()
            torch.testing.assert_close(rectified, y.relu(), rtol=0, atol=0, equal_nan=True)


def check_alignment(kernels, offset, width, device="cpu"):
    """Check images that lie amid NaN; their rows are aligned to nothing, each otherwise."""
    images = []
    for before, seed in ((offset, 0), (8 - offset, 3)):
        around = torch.full((2, 2, 13, width + 11), torch.nan, dtype=kernels.dtype, device=device)
        images.append(around[:, :, 1:12, before : before + width])
        images[-1].copy_(kernels.random(2, 2, 11, width, seed=seed))
    kernels.check(*images)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("width", [8, 13])
@each_family
@one_order
def test_any_alignment_within_nan(emulated_cuda, kernels, offset, width):
    check_alignment(kernels, offset, width)


@pytest.mark.gpu
@each_family
def test_any_alignment_on_a_gpu(cuda_device, kernels):
    for offset, width in itertools.product(range(9), (8, 13)):
        check_alignment(kernels, offset, width, cuda_device)


def fenced(x, at_the_end):
    """Return x between pages no one may read: its first or its last byte is beside one."""
    page, size = mmap.PAGESIZE, x.numel() * x.element_size()
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + 2 * page)
    offset = page + (pages - size if at_the_end else 0)
    inside = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape)
    inside.copy_(x)
    libc = ctypes.CDLL(None, use_errno=True)
    for address in (inside.data_ptr() - offset, inside.data_ptr() - offset + page + pages):
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
    return inside


@pytest.mark.parametrize("shape", [(2, 1, 21, 24), (1, 2, 9, 13), (1, 1, 40, 6)], ids=str)
@each_family
@one_order
def test_nothing_is_read_outside_of_the_images(emulated_cuda, kernels, shape):
    # A kernel that does ends the process; for single bytes see test_dwconv_cuda_rows.py.
    for at_the_end in (False, True):
        kernels.check(*(fenced(kernels.random(*shape, seed=s), at_the_end) for s in (0, 3)))


@each_family
@one_order
def test_offsets_beyond_32_bits(emulated_cuda, kernels):
    far = 2**31 + 24
    memory = torch.UntypedStorage(kernels.dtype.itemsize * (far + 64))  # two images are touched
    images = torch.empty(0, dtype=kernels.dtype).set_(memory)
    images = images.as_strided((2, 1, 8, 8), (far, 64, 8, 1))
    images.copy_(kernels.random(2, 1, 8, 8))
    kernels.check(images)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
@each_family
@one_order
def test_empty_images(emulated_cuda, kernels, shape):
    x, weight = torch.zeros(shape, dtype=kernels.dtype), kernels.weight(shape[1])
    for module in (kernels.module, dwconv_cuda):
        assert module.forward(x, weight, None, torch.channels_last).shape == shape
    gw = dwconv_cuda.grad_weight(x, x, kernels.size)
    assert torch.equal(gw, torch.zeros_like(weight))


@each_family
@one_order
def test_a_kernel_of_one_tap_moves_the_image(emulated_cuda, kernels):
    x, weight = kernels.random(2, 2, 21, 26), torch.zeros_like(kernels.weight(2))
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
    assert torch.equal(kernels.module.forward(x, weight, None, NCHW), x)
    weight = weight.roll((2, -2), (2, 3))
    shifted = torch.nn.functional.pad(x, (2, -2, -2, 2))
    assert torch.equal(kernels.module.forward(x, weight, None, NCHW), shifted)
    back = torch.nn.functional.pad(x, (-2, 2, 2, -2))
    assert torch.equal(kernels.module.forward(x, weight, None, NCHW, flip=True), back)
