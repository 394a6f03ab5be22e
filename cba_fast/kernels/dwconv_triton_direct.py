"""Triton kernels of the depthwise convolution with small kernels: tap by tap, any strides.

A program holds pixels x channels. On contiguous images its channels are one and its lanes are
neighbouring pixels, on channels_last ones they are mostly channels: either way neighbouring lanes
read neighbouring addresses, and the taps' overlapping reads meet in the L1 cache. (Strides and the
number of channels are left to Triton's specialization: it must know which stride is 1.) Every tap
is a load of its own, which bounds the arithmetic to about a quarter of the FMA rate: these kernels
are for 7x7 and less.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height", "width", "kernel_h"])
def dwconv_direct_kernel(
    x_ptr,  # [N, C, H, W]
    weight_ptr,  # [C, KH * KW]
    bias_ptr,  # [C]
    y_ptr,  # [N, C, H, W]
    channels,
    height,
    width,
    kernel_h,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    weight_stride_c,
    weight_stride_tap,
    y_stride_n,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    KERNEL_W: tl.constexpr,
    FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute BLOCK_P pixels x BLOCK_C channels of one image per program."""
    pixel_blocks = tl.cdiv(height * width, BLOCK_P)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    p = (pid % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    rest = pid // pixel_blocks
    c = (rest % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (rest // channel_blocks).to(tl.int64)
    h = (p // width).to(tl.int64)
    w = (p % width).to(tl.int64)
    c_ok = c < channels
    c_long = c.to(tl.int64)

    x_base = x_ptr + n * x_stride_n + (c_long * x_stride_c)[None, :]
    x_base += (h * x_stride_h + w * x_stride_w)[:, None]
    weight_base = weight_ptr + c_long * weight_stride_c
    taps = kernel_h * KERNEL_W
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for i in range(kernel_h):
        down = (i - kernel_h // 2).to(tl.int64)
        row_ok = (h + down >= 0) & (h + down < height)
        for s in tl.static_range(KERNEL_W):
            right = s - KERNEL_W // 2
            ok = row_ok & (w + right >= 0) & (w + right < width)
            x = tl.load(
                x_base + (down * x_stride_h + right * x_stride_w),
                mask=ok[:, None] & c_ok[None, :],
                other=0.0,
            )
            tap = i * KERNEL_W + s
            if FLIP:
                tap = taps - 1 - tap
            weight = tl.load(weight_base + tap * weight_stride_tap, mask=c_ok, other=0.0)
            acc += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + c, mask=c_ok, other=0.0).to(tl.float32)[None, :]

    target = y_ptr + n * y_stride_n + (c_long * y_stride_c)[None, :]
    target += (h * y_stride_h + w * y_stride_w)[:, None]
    ok = (p < height * width)[:, None] & c_ok[None, :]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["batch", "height", "width", "kernel_h", "kernel_w", "splits"])
def dwconv_direct_weight_kernel(
    grad_ptr,  # [N, C, H, W]
    x_ptr,  # [N, C, H, W]
    partial_ptr,  # [splits, C, KH, KW], float32
    batch,
    channels,
    height,
    width,
    kernel_h,
    kernel_w,
    splits,
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    grad_stride_w,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,  # taps of a kernel row, rounded up to a power of 2
    BLOCK_C: tl.constexpr,
):
    """Sum one kernel row of BLOCK_C channels over every `splits`-th block of pixels."""
    pid = tl.program_id(0)
    i = pid % kernel_h
    rest = pid // kernel_h
    split = rest % splits
    c = (rest // splits) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_ok = c < channels
    c_long = c.to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    right = s - kernel_w // 2
    down = i - kernel_h // 2

    pixel_blocks = tl.cdiv(height * width, BLOCK_P)
    acc = tl.zeros((BLOCK_P, BLOCK_S, BLOCK_C), dtype=tl.float32)
    for block in range(split, batch * pixel_blocks, splits):
        n = tl.full((1, 1), 0, tl.int64) + block // pixel_blocks
        p = (block % pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        h = (p // width).to(tl.int64)
        w = (p % width).to(tl.int64)
        row = h + down
        column = w[:, None] + right[None, :]
        x_ok = ((row >= 0) & (row < height))[:, None] & (column >= 0) & (column < width)
        x_ok &= (s < kernel_w)[None, :]
        x_offset = n * x_stride_n + (row * x_stride_h)[:, None] + column * x_stride_w
        x = tl.load(
            x_ptr + x_offset[:, :, None] + (c_long * x_stride_c)[None, None, :],
            mask=x_ok[:, :, None] & c_ok[None, None, :],
            other=0.0,
        )
        grad = tl.load(
            grad_ptr
            + n * grad_stride_n
            + (h * grad_stride_h + w * grad_stride_w)[:, None]
            + (c_long * grad_stride_c)[None, :],
            mask=(h < height)[:, None] & c_ok[None, :],
            other=0.0,
        )
        acc += x.to(tl.float32) * grad.to(tl.float32)[:, None, :]

    total = tl.sum(acc, 0)  # [S, C]
    line = (split.to(tl.int64) * channels + c_long) * kernel_h + i
    target = partial_ptr + line[None, :] * kernel_w + s[:, None]
    tl.store(target, total, mask=(s < kernel_w)[:, None] & c_ok[None, :])
