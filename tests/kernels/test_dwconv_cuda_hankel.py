"""The tensor-core depthwise convolution, its tiles emulated; see also test_dwconv_cuda.py."""

import itertools

import pytest
import torch
from tolerance import assert_forward, assert_grad_weight, assert_grad_x

from cba_fast.kernels.dwconv_gpu import cuda_hankel as hankel
from cba_fast.kernels.dwconv_gpu.cuda_hankel import TILES, WEIGHT_TILES, Tile, WeightTile

pytestmark = pytest.mark.usefixtures("empty_is_nan")
BF16, FP16 = hankel.DTYPES
CONTIGUOUS = torch.contiguous_format
each_type = pytest.mark.parametrize("dtype", hankel.DTYPES, ids=str)
one_order = pytest.mark.parametrize("emulated_cuda", [2], ids=["shuffled"], indirect=True)


def random(*shape, dtype, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def check_forward(shape, kernel_size, dtype, using=None, x=None, device="cpu"):
    x = random(*shape, dtype=dtype, device=device) if x is None else x
    weight = random(shape[1], 1, *kernel_size, dtype=dtype, seed=1, device=x.device)
    bias = random(shape[1], dtype=dtype, seed=2, device=x.device)
    assert_forward(hankel.forward(x, weight, bias, CONTIGUOUS, using=using), x, weight, bias)


def check_grad_x(shape, kernel_size, dtype, using=None, device="cpu"):
    grad = random(*shape, dtype=dtype, device=device)
    weight = random(shape[1], 1, *kernel_size, dtype=dtype, seed=1, device=device)
    gx = hankel.forward(grad, weight, None, CONTIGUOUS, flip=True, using=using)
    assert_grad_x(gx, grad, weight)


def check_grad_weight(shape, kernel_size, dtype, using=None, x=None, device="cpu"):
    x = random(*shape, dtype=dtype, device=device) if x is None else x
    grad = random(*shape, dtype=dtype, seed=3, device=x.device)
    assert_grad_weight(hankel.grad_weight(grad, x, kernel_size, using=using), grad, x)


# Values.

CASES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 1, 1), (31, 31)),
    ((3, 2, 12, 12), (13, 13)),
    ((9, 1, 12, 12), (31, 31)),
    ((5, 1, 24, 24), (27, 27)),
    ((1, 2, 33, 47), (29, 31)),
    ((2, 1, 17, 23), (7, 7)),
    ((1, 1, 40, 33), (3, 9)),
    ((1, 1, 70, 9), (51, 5)),
    ((1, 1, 9, 70), (5, 51)),
    ((2, 1, 66, 3), (63, 1)),
    ((2, 1, 3, 66), (1, 63)),
    ((1, 1, 1, 100), (9, 9)),
    ((1, 1, 100, 1), (9, 9)),
    ((1, 1, 20, 20), (63, 63)),
]


@pytest.mark.parametrize(("shape", "kernel_size"), CASES, ids=str)
@each_type
@one_order
def test_values(emulated_cuda, shape, kernel_size, dtype):
    check_forward(shape, kernel_size, dtype)
    check_grad_x(shape, kernel_size, dtype)
    check_grad_weight(shape, kernel_size, dtype)


@one_order
def test_a_row_of_96_in_one_tile(emulated_cuda):
    check_forward((1, 1, 40, 96), (31, 31), BF16, Tile(2, 12, 1))
    check_grad_weight((1, 1, 40, 96), (31, 31), FP16, WeightTile(2, 4, 6))


@pytest.mark.parametrize("order_case", [0, 1, 2])
def test_any_order_of_threads(emulated_cuda, order_case):
    shape, kernel_size, using, weight_using = [
        ((2, 1, 40, 19), (15, 11), Tile(1, 3, 4), WeightTile(1, 2, 1)),
        ((3, 2, 13, 11), (13, 13), Tile(1, 2, 8), WeightTile(2, 4, 1, 2)),
        ((1, 1, 37, 50), (31, 33), Tile(2, 6, 2, bands=2), WeightTile(2, 8, 2, bands=3)),
    ][order_case]
    check_forward(shape, kernel_size, BF16, using)
    check_grad_weight(shape, kernel_size, BF16, weight_using)


def check_tile(tile, steps, dtype, device="cpu"):
    slots, columns, images = tile
    kernel_size = (16 * slots - 1, 16 * steps - 1)
    # Slots in turn, two tiles; then a slot for each row, an image too few.
    shape = (1, 1, 16 * slots + 2, 8 * columns + 3)
    check_forward(shape, kernel_size, dtype, Tile(*tile), device=device)
    shape = (images + 1, 1, 6, 9)
    check_grad_x(shape, (kernel_size[0], 5), dtype, Tile(*tile), device=device)


def check_weight_tile(tile, dtype, device="cpu"):
    rows, columns = tile
    kernel_size = (16 * rows - 3, 8 * columns - 1)
    shape = (2, 1, 19 if rows < 3 else 35, 33)
    check_grad_weight(shape, kernel_size, dtype, WeightTile(*tile, 1), device=device)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@one_order
def test_every_tile(emulated_cuda, tile, steps):
    check_tile(tile, steps, BF16 if steps % 2 else FP16)


@pytest.mark.parametrize("tile", WEIGHT_TILES, ids=str)
@one_order
def test_every_weight_tile(emulated_cuda, tile):
    check_weight_tile(tile, BF16)


@pytest.mark.parametrize("bands", [2, 3, 7, 23])
@one_order
def test_bands_of_rows(emulated_cuda, bands):
    check_forward((1, 1, 23, 10), (9, 9), FP16, Tile(1, 2, 8, bands))
    check_grad_x((1, 1, 50, 10), (15, 5), FP16, Tile(1, 3, 4, bands))
    check_grad_weight((2, 1, 23, 10), (9, 9), FP16, WeightTile(1, 2, 1, 2, bands))


# What does not change a result, and what may.


@one_order
def test_an_image_does_not_depend_on_the_batch(emulated_cuda):
    x, weight = random(5, 1, 24, 24, dtype=BF16), random(1, 1, 13, 13, dtype=BF16, seed=1)
    using = Tile(1, 3, 4)
    whole = hankel.forward(x, weight, None, CONTIGUOUS, using=using)
    for n in range(5):
        alone = hankel.forward(x[n : n + 1], weight, None, CONTIGUOUS, using=using)
        assert torch.equal(alone[0], whole[n])


def test_a_weight_gradient_has_the_same_bits_every_time(emulated_cuda):
    # The fixture runs this in three orders of threads; the sum is one of integers, and exact.
    grad, x = (random(9, 2, 12, 12, dtype=FP16, seed=s) for s in (0, 1))
    results = {hankel.grad_weight(grad, x, (5, 5)).numpy().tobytes() for _ in range(2)}
    assert len(results) == 1
    whole = [t.mul(4).round() for t in (grad, x)]
    gw = hankel.grad_weight(*whole, (5, 5))
    exact = torch.nn.grad.conv2d_weight(
        whole[1].double(), gw.shape, whole[0].double(), padding=2, groups=2
    )
    assert torch.equal(gw, exact.to(FP16))


@one_order
def test_splits_of_the_batch(emulated_cuda):
    shape = (23, 1, 5, 6)
    assert hankel.splits(shape, hankel.weight_tile(shape, (3, 3))) == 6
    check_grad_weight(shape, (3, 3), BF16)
    assert hankel.splits((64, 512, 24, 24), WeightTile(2, 4, 2)) == 2
    assert hankel.splits((1, 2000, 12, 12), WeightTile(2, 4, 1)) == 1


@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_many_images_for_each_warp(emulated_cuda, monkeypatch, images):
    monkeypatch.setattr(hankel, "_WEIGHT_BLOCKS", 1)
    n = 9 * images + 1  # ten units of work for four warps, of the last one image
    using = WeightTile(1, 1, 1, images, 1)
    assert hankel.splits((n, 1, 5, 20), using) == 1
    check_grad_weight((n, 1, 5, 20), (5, 7), BF16, using)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@one_order
def test_how_far_a_nan_reaches(emulated_cuda, bad):
    x = random(2, 2, 200, 90, dtype=BF16)
    weight = random(2, 1, 5, 5, dtype=BF16, seed=1)
    clean = hankel.forward(x, weight, None, CONTIGUOUS)
    x[1, 0, 98, 70] = bad
    dirty = hankel.forward(x, weight, None, CONTIGUOUS)
    assert not dirty[1, 0, 96:101, 68:73].isfinite().any()
    reached = torch.zeros(x.shape, dtype=torch.bool)
    reached[1, 0, 98 - 95 : 98 + 96, 70 - 63 :] = True
    assert torch.equal(dirty[~reached], clean[~reached])


# Refusals.


def test_no_launch_has_more_blocks_than_it_says():
    sides = (1, 15, 16, 17, 96, 300)
    for shape in itertools.product((1, 3, 64), (1, 2048), sides, sides):
        n, c, _, w = shape
        for kernel_size in ((1, 1), (63, 63), (5, 51)):
            tile, weight_tile = (f(shape, kernel_size) for f in (hankel.tile, hankel.weight_tile))
            warps = c * -(-n // tile.images) * -(-w // (8 * tile.columns)) * tile.bands
            assert warps <= hankel.most_blocks(shape)
            assert c * hankel.splits(shape, weight_tile) <= hankel.most_blocks(shape)


@pytest.mark.parametrize(
    ("kernel_size", "using"),
    [
        ((5, 5), Tile(1, 5, 1)),  # no such kernel
        ((5, 5), Tile(2, 12, 2)),
        ((33, 5), Tile(2, 3, 4)),  # too few slots
        ((5, 5), Tile(1, 2, 8, 0)),
        ((4, 5), Tile(1, 2, 8)),
    ],
)
@one_order
def test_the_core_refuses_what_it_has_no_kernel_for(emulated_cuda, kernel_size, using):
    x, weight = random(1, 1, 40, 20, dtype=BF16), random(1, 1, *kernel_size, dtype=BF16)
    with pytest.raises(ValueError, match="no kernel|odd and at most 63"):
        hankel.forward(x, weight, None, CONTIGUOUS, using=using)


@pytest.mark.parametrize(
    ("dtype", "using"),
    [
        (BF16, WeightTile(1, 1, 1, 1, 0)),
        (BF16, WeightTile(1, 1, 1, 3)),
        (BF16, WeightTile(1, 1, 200)),  # more shared memory than a block may have
        (BF16, WeightTile(1, 3, 1)),
        (torch.float32, WeightTile(1, 1, 1)),
    ],
)
@one_order
def test_the_core_refuses_weight_tiles(emulated_cuda, dtype, using):
    x = random(4, 1, 40, 20, dtype=dtype)
    with pytest.raises(ValueError, match="no kernel|splits"):
        hankel.grad_weight(x, x, (5, 5), using=using)


@pytest.mark.parametrize(("image", "kernel_size"), [((96, 96), (31, 31)), ((24, 24), (47, 5))])
def test_tiles_fit_for_any_number_of_images(image, kernel_size):
    for n, c in itertools.product((1, 2, 3, 8, 64), (1, 128, 1024)):
        tile = hankel.tile((n, c, *image), kernel_size)
        assert tile[:3] in TILES
        rows = min(kernel_size[0], -(-image[0] // tile.bands))
        assert 16 * tile.slots >= rows


def test_weight_tiles_fit_in_shared_memory():
    sides = (1, 3, 13, 31, 51, 63)
    for kernel_size in itertools.product(sides, sides):
        for n, c, h, w in itertools.product((1, 64), (1, 2048), (1, 24, 300), (1, 12, 96, 300)):
            tile = hankel.weight_tile((n, c, h, w), kernel_size)
            rows, columns, steps, images, _ = tile
            assert 16 * rows >= min(kernel_size[0], 2 * h - 1)
            assert 8 * columns >= min(kernel_size[1], 2 * w - 1)
            ring = min(kernel_size[0], 2 * h - 1, h)
            assert 4 * images * hankel.image_bytes(ring, columns, steps, images) <= 99 << 10


@one_order
def test_shared_memory_is_what_the_core_takes(emulated_cuda):
    # The limit is 99 KB; the images are four, so that a block has four warps.
    x = random(4, 1, 9, 5, dtype=BF16)
    fitting = [4 * hankel.image_bytes(7, 1, steps, 1) <= 99 << 10 for steps in range(1, 64)]
    last = fitting.index(False)
    assert_grad_weight(hankel.grad_weight(x, x, (7, 3), using=WeightTile(1, 1, last)), x, x)
    with pytest.raises(ValueError, match="no kernel"):
        hankel.grad_weight(x, x, (7, 3), using=WeightTile(1, 1, last + 1))


def test_tiles_of_replknet():
    # RepLKNet-31B at 384, a batch of 64: what the model of the design assumes.
    expected = {
        (128, 96, 31): (Tile(2, 12, 1), WeightTile(2, 4, 6)),
        (256, 48, 29): (Tile(2, 6, 2), WeightTile(2, 4, 3, 2)),
        (512, 24, 27): (Tile(2, 3, 4), WeightTile(2, 4, 2, 4)),
        (1024, 12, 13): (Tile(1, 2, 8), WeightTile(1, 2, 1, 8)),
    }
    for (channels, side, taps), tiles in expected.items():
        shape = (64, channels, side, side)
        found = hankel.tile(shape, (taps, taps)), hankel.weight_tile(shape, (taps, taps))
        assert found == tiles


# On a GPU: what the automatic choice of tiles in test_dwconv_gpu.py does not reach.


@pytest.mark.gpu
@each_type
def test_every_tile_on_a_gpu(cuda_device, dtype):
    for tile, steps in itertools.product(TILES, (1, 2, 3, 4)):
        check_tile(tile, steps, dtype, cuda_device)
    for tile in WEIGHT_TILES:
        check_weight_tile(tile, dtype, cuda_device)


@pytest.mark.gpu
def test_shared_memory_on_a_gpu(cuda_device):
    # As much as a block may have; and many images for each warp.
    x = random(37, 1, 9, 5, dtype=BF16, device=cuda_device)
    steps = max(s for s in range(1, 64) if 4 * hankel.image_bytes(7, 1, s, 1) <= 99 << 10)
    for using in (WeightTile(1, 1, steps), WeightTile(1, 1, 1, 8)):
        assert_grad_weight(hankel.grad_weight(x, x, (7, 3), using=using), x, x)
