"""The convolution with strips on tensor cores: its bands in NumPy, its kernels emulated."""

import itertools

import numpy as np
import pytest
import torch
from tolerance import assert_forward, assert_grad_x

from cba_fast.kernels import dwconv_cuda
from cba_fast.kernels.dwconv_gpu import cuda_strip as strip
from cba_fast.kernels.dwconv_gpu.cuda_strip import KERNELS, Tile

pytestmark = pytest.mark.usefixtures("empty_is_nan")
BF16, FP16 = strip.DTYPES
CONTIGUOUS = torch.contiguous_format
each_type = pytest.mark.parametrize("dtype", strip.DTYPES, ids=str)
each_way = pytest.mark.parametrize("standing", [False, True], ids=["lying", "standing"])
one_order = pytest.mark.parametrize("emulated_cuda", [2], ids=["shuffled"], indirect=True)


def random(*shape, dtype=BF16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def check(shape, kernel_size, dtype=BF16, using=None, x=None, device="cpu"):
    x = random(*shape, dtype=dtype).to(device) if x is None else x
    weight = random(shape[1], 1, *kernel_size, dtype=dtype, seed=1).to(device)
    bias = random(shape[1], dtype=dtype, seed=2).to(device)
    assert_forward(strip.forward(x, weight, bias, CONTIGUOUS, using=using), x, weight, bias)
    gx = strip.forward(x, weight, None, CONTIGUOUS, flip=True, using=using)
    assert_grad_x(gx, x, weight)


def turned(standing, *sides):
    """Return (across, along) as they are in an image, or the other way round."""
    return tuple(reversed(sides)) if standing else sides


# The registers of csrc/cuda/dwconv_strip.cu.


@pytest.mark.parametrize(("reach", "taps"), [(3, 49), (4, 51), (4, 63), (3, 13)])
def test_bands_in_registers(reach, taps):
    margin = taps // 2
    row = np.zeros(16 * reach + 16, int)  # what fill_taps writes: tap numbers, from 1 on
    row[8 * reach + 7 - margin : 8 * reach + 8 + margin] = np.arange(1, taps + 1)
    for lane, m in itertools.product(range(32), range(2 * reach + 1)):
        group, place = divmod(lane, 4)
        at = 2 * place - group + 7 + 8 * m
        for element in range(2):
            # "Matrix fragments for mma.m16n8k16", operand b: row k, column n of this register.
            k, n = 2 * place + element, group
            distance = 8 * (m - reach) + k - n
            assert row[at + element] == (distance + margin + 1 if abs(distance) <= margin else 0)
    # Matrices beyond the reach hold no tap.
    assert 8 * (reach + 1) - 7 > margin


@pytest.mark.parametrize("elements", [16, 24, 32, 48, 96, 160])
def test_rows_lie_in_different_banks(elements):
    stride = strip._row_bytes(elements)
    assert stride >= 2 * elements
    assert len({row * stride // 16 % 8 for row in range(8)}) == 8


# Values.

CASES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 1, 1), (5, 31)),
    ((3, 2, 24, 24), (5, 47)),
    ((3, 2, 24, 24), (47, 5)),
    ((9, 1, 12, 12), (13, 5)),
    ((5, 1, 7, 7), (5, 13)),
    ((2, 1, 48, 48), (49, 5)),
    ((1, 1, 96, 40), (51, 5)),
    ((1, 1, 40, 96), (5, 51)),
    ((1, 2, 33, 17), (7, 63)),
    ((1, 2, 17, 33), (63, 7)),
    ((2, 1, 150, 3), (63, 1)),
    ((2, 1, 3, 150), (3, 63)),
    ((1, 1, 1, 100), (7, 9)),
    ((1, 1, 100, 1), (9, 7)),
    ((2, 1, 19, 23), (7, 7)),
]


@pytest.mark.parametrize(("shape", "kernel_size"), CASES, ids=str)
@each_type
@one_order
def test_values(emulated_cuda, shape, kernel_size, dtype):
    check(shape, kernel_size, dtype)


@pytest.mark.parametrize("seed", range(16))
@one_order
def test_random_shapes(emulated_cuda, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.integers(1, most)) for most in (5, 3, 50, 50))
    sides = 2 * int(rng.integers(0, 4)) + 1, 2 * int(rng.integers(0, 32)) + 1
    check(shape, turned(seed % 2, *sides), strip.DTYPES[seed // 2 % 2])


TILES = [
    # Across and along: an image, then the kernel.
    (Tile(3, 1, 13, 4, 2), (13, 21), (5, 41)),  # images straddled by groups, parts, a last one
    (Tile(3, 1, 17, 3, 1), (17, 24), (3, 47)),
    (Tile(4, 1, 16, 1, 1), (37, 70), (5, 51)),  # cut in both directions
    (Tile(4, 3, 32, 1, 2), (33, 110), (5, 63)),
    (Tile(6, 1, 48, 2, 1), (20, 48), (5, 49)),
    (Tile(6, 2, 16, 1, 1), (19, 101), (5, 51)),
    (Tile(6, 1, 16, 1, 3), (30, 150), (5, 33)),
    (Tile(4, 2, 29, 2, 1), (29, 61), (7, 55)),
    (Tile(4, 1, 48, 1, 9), (50, 70), (7, 57)),
]


@pytest.mark.parametrize(("using", "image", "kernel_size"), TILES, ids=str)
@each_way
@one_order
def test_tiles(emulated_cuda, using, image, kernel_size, standing):
    shape = (3 if using.images > 1 else 2, 1, *turned(standing, *image))
    check(shape, turned(standing, *kernel_size), FP16, using)


@pytest.mark.parametrize(("using", "image", "kernel_size"), [TILES[0], TILES[2]], ids=str)
@each_way
def test_any_order_of_threads(emulated_cuda, using, image, kernel_size, standing):
    shape = (5, 1, *turned(standing, *image))
    check(shape, turned(standing, *kernel_size), BF16, using)


# What does not change a result, and what may.


@each_way
@one_order
def test_an_image_does_not_depend_on_the_batch(emulated_cuda, standing):
    x, weight = random(5, 1, 13, 13), random(1, 1, *turned(standing, 5, 13), seed=1)
    alone = [strip.forward(x[n : n + 1], weight, None, CONTIGUOUS) for n in range(5)]
    for using in (Tile(3, 1, 13, 3, 1), Tile(3, 1, 13, 2, 3), Tile(4, 1, 13, 1, 5)):
        together = strip.forward(x, weight, None, CONTIGUOUS, using=using)
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@each_way
@one_order
def test_how_far_a_nan_reaches(emulated_cuda, bad, standing):
    using = Tile(6, 2, 19, 2, 1)
    x = random(2, 2, *turned(standing, 19, 130))
    weight = random(2, 1, *turned(standing, 5, 51), seed=1)
    clean = strip.forward(x, weight, None, CONTIGUOUS, using=using)
    for along in (8, 47, 63, 96) if bad != bad else (47,):
        h, w = turned(standing, 9, along)
        spoiled = x.clone()
        spoiled[1, 0, h, w] = bad
        dirty = strip.forward(spoiled, weight, None, CONTIGUOUS, using=using)

        def around(across, far):
            """Return a mask of the outputs at most that far away."""
            lines, places = torch.arange(19), torch.arange(130)
            near = (lines - 9).abs()[:, None] <= across
            near = near & ((places - along).abs() <= far)  # noqa: B023
            mask = torch.zeros(x.shape, dtype=torch.bool)
            mask[1, 0] = near.T if standing else near
            return mask

        assert not dirty[around(2, 25)].isfinite().any()
        assert torch.equal(dirty[~around(2, 47)], clean[~around(2, 47)])


@one_order
def test_a_nan_in_a_kernel_stays_in_its_channel(emulated_cuda):
    x, weight = random(2, 2, 20, 30), random(2, 1, 5, 21, seed=1)
    clean = strip.forward(x, weight, None, CONTIGUOUS)
    weight[0, 0, 4, 20] = torch.nan
    dirty = strip.forward(x, weight, None, CONTIGUOUS)
    assert torch.equal(dirty[:, 1], clean[:, 1])
    assert dirty[:, 0, :18, :20].isnan().all()


# Choices.


@pytest.mark.parametrize(
    ("dtype", "kernel_size", "using"),
    [
        (BF16, (5, 51), Tile(5, 1, 16, 1, 1)),  # no such kernel
        (BF16, (7, 51), Tile(6, 1, 16, 1, 1)),
        (BF16, (5, 51), Tile(3, 1, 16, 1, 1)),  # of that reach
        (BF16, (5, 13), Tile(3, 1, 16, 1, 1)),  # cuts that are no multiples of 16
        (BF16, (5, 51), Tile(6, 1, 24, 1, 1)),
        (BF16, (5, 51), Tile(6, 1, 16, 2, 1)),  # images cut and side by side
        (BF16, (5, 51), Tile(6, 1, 40, 200, 1)),  # more shared memory than a block may have
        (BF16, (5, 51), Tile(6, 1 << 30, 40, 1, 1)),
        (BF16, (5, 51), Tile(6, 1, 40, 1 << 30, 1)),
        (BF16, (5, 51), Tile(6, 1, 16, 1, 0)),
        (BF16, (5, 51), Tile(6, 1, 16, 1, 2**31 - 1)),
        (BF16, (5, 50), Tile(6, 1, 16, 1, 1)),
        (BF16, (9, 51), Tile(6, 1, 16, 1, 1)),
        (torch.float32, (5, 51), Tile(6, 1, 16, 1, 1)),
    ],
    ids=str,
)
@one_order
def test_the_core_refuses_what_it_has_no_kernel_for(emulated_cuda, dtype, kernel_size, using):
    x, weight = random(1, 1, 40, 60, dtype=dtype), random(1, 1, *kernel_size, dtype=dtype)
    with pytest.raises(ValueError, match="no kernel|odd and at most 63"):
        strip.forward(x, weight, None, CONTIGUOUS, using=using)


@each_way
@one_order
def test_shared_memory_is_what_the_core_takes(emulated_cuda, standing):
    # The limit is 99 KB.
    shape = (200, 1, *turned(standing, 6, 20))
    kernel, kernel_size = KERNELS[0], turned(standing, 5, 9)
    sizes = strip._strip(shape, kernel_size)
    fits = [strip.shared_bytes(sizes, kernel, 1, 6, n) <= 99 << 10 for n in range(1, 200)]
    last = fits.index(False)
    check((last, *shape[1:]), kernel_size, using=Tile(3, 1, 6, last, 1))
    with pytest.raises(ValueError, match="no kernel|odd and at most 63"):
        check(shape, kernel_size, using=Tile(3, 1, 6, last + 1, 1))


@pytest.mark.parametrize("across", [1, 5, 7])
def test_tiles_run_for_any_shape(across):
    for along, n, c, h, w in itertools.product(
        (7, 63), (1, 64), (1, 512), (1, 24, 1000), (7, 96, 3000)
    ):
        for kernel_size in ((across, along), (along, across)):
            shape = (n, c, h, w)
            sizes, using = strip._strip(shape, kernel_size), strip.tile(shape, kernel_size)
            fitting = [k for k in strip._fitting(sizes) if k.columns == using.columns]
            kernel = fitting[0]
            assert kernel.across >= sizes.across
            assert 8 * kernel.reach + 1 > sizes.along // 2
            shared = strip.shared_bytes(sizes, kernel, *using[1:4])
            assert shared <= strip._SHARED
            assert using.images == 1 or using.lines == sizes.lines
            assert using.lines % 16 == 0 or using.lines == sizes.lines
            assert 1 <= using.parts <= -(-n // using.images)
            cuts = -(-sizes.length // (8 * using.columns * using.spans))
            blocks = c * cuts * -(-sizes.lines // using.lines) * using.parts
            assert blocks <= dwconv_cuda.most_blocks(torch.empty(shape, dtype=BF16, device="meta"))


def test_strips_of_slak():
    # SLaK-T at 384, a batch of 64: the products in terms of those needed, as in dwconv_strip.h.
    for channels, side, along, lying, standing in (
        (124, 96, 51, 1.25, 1.25),
        (249, 48, 49, 0.87, 0.87),
        (499, 24, 47, 0.74, 0.91),
    ):
        shape = (64, channels, side, side)
        for kernel_size, expected in (((5, along), lying), ((along, 5), standing)):
            sizes, using = strip._strip(shape, kernel_size), strip.tile(shape, kernel_size)
            kernel = next(k for k in strip._fitting(sizes) if k.columns == using.columns)
            groups = strip._groups(sizes, kernel, using.lines, using.images)[0]
            products = groups * using.spans * strip._products(side, kernel, using.spans)
            assert using.lines == 8 * using.columns * using.spans == side  # one tile an image
            needed = using.images * side * side * 5 * along / (16 * 8 * 16)
            assert products / needed == pytest.approx(expected, abs=0.006)
            assert strip.shared_bytes(sizes, kernel, *using[1:4]) <= 57 << 10  # four in 228 KB


@pytest.mark.gpu
@each_type
def test_on_a_gpu(cuda_device, dtype):
    for shape, kernel_size in CASES:
        check(shape, kernel_size, dtype, device=cuda_device)
    for (using, image, kernel_size), standing in itertools.product(TILES, (False, True)):
        shape = (3, 2, *turned(standing, *image))
        check(shape, turned(standing, *kernel_size), dtype, using, device=cuda_device)
