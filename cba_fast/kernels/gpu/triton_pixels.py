"""Triton kernels that work on one pixel at a time: quantization, and the sum of ERF maps.

They must be launched with ``enable_fp_fusion=False``: every operation rounds by itself, so that the
results have the bits of the other backends.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def quantize_kernel(source_ptr, bytes_ptr, first_bad_ptr, count, BLOCK: tl.constexpr):
    """Quantize BLOCK values per program, and lower *first_bad_ptr to the first unusable one."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(source_ptr + at, mask=inside, other=0.0)
    good = (value >= 0) & (value <= 1)  # False for NaN
    tl.store(bytes_ptr + at, (value * 255).to(tl.int32).to(tl.uint8), mask=inside & good)
    first_bad = tl.min(tl.where(inside & (good == 0), at, count), axis=0)
    if first_bad < count:
        tl.atomic_min(first_bad_ptr, first_bad)


@triton.jit(
    do_not_specialize=[
        *("images", "channels", "width", "count", "stride_n", "stride_c", "stride_y", "stride_x"),
        *("map_stride_y", "map_stride_x"),
    ]
)
def erf_accumulate_kernel(
    grad_ptr,  # [N, C, H, W]
    map_ptr,  # [H, W]
    images,
    channels,
    width,
    count,  # H * W
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    map_stride_y,
    map_stride_x,
    MODE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add BLOCK pixels of all images to the map, in the order of `reference.erf_accumulate`."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < count
    y, x = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)
    image_ptr = grad_ptr + y * stride_y + x * stride_x
    sums = tl.zeros((BLOCK,), dtype=tl.float64)
    errors = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, images, GROUP):
        group = tl.zeros((BLOCK,), dtype=tl.float64)
        for _ in range(start, min(start + GROUP, images)):
            channel_ptr = image_ptr
            for _ in range(channels):
                value = tl.load(channel_ptr, mask=inside, other=0.0)
                if value.dtype != tl.float64:
                    value = value.to(tl.float32)  # the interpreter has no bfloat16 arithmetic
                value = value.to(tl.float64)
                if MODE == "relu":
                    value = tl.where(value < 0, 0.0, value)  # a NaN stays a NaN
                elif MODE == "abs":
                    value = tl.abs(value)
                else:
                    value = value * value
                group += value
                channel_ptr += stride_c
            image_ptr += stride_n
        total = sums + group
        added = total - sums
        errors += (sums - (total - added)) + (group - added)  # the rounding error, exactly
        sums = total
    to_ptr = map_ptr + y * map_stride_y + x * map_stride_x
    before = tl.load(to_ptr, mask=inside, other=0.0)
    tl.store(to_ptr, before + (sums + errors), mask=inside)
