"""Triton kernels of the depthwise convolution on small maps: one dense matrix per channel.

On a map of P = H * W pixels the convolution of a channel is y[n, :] = x[n, :] @ T with the P x P
matrix T[p, q] = w[h(p) - h(q) + kh//2, w(p) - w(q) + kw//2], zero where that is no tap (a Toeplitz
matrix of Toeplitz blocks). On up to 12x12 pixels this takes no more products per pixel than a 13x13
kernel has taps. The product has its own kernel instead of ``torch.bmm``, so that it accumulates in
float32 whatever PyTorch's global switches for reduced precision say, and adds the bias for free.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["height", "width", "kernel_h", "kernel_w", "row_units"])
def dwconv_toeplitz_matrix_kernel(
    weight_ptr,  # [C, KH, KW]
    matrix_ptr,  # [C, P, row_units * UNIT]
    height,
    width,
    kernel_h,
    kernel_w,
    row_units,
    FLIP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Write BLOCK_P rows of one channel's matrix per program, with zeros from column P on."""
    pixels = height * width
    length = row_units * UNIT
    blocks = tl.cdiv(pixels, BLOCK_P)
    pid = tl.program_id(0)
    channel = (pid // blocks).to(tl.int64)
    p = ((pid % blocks) * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    q = tl.arange(0, BLOCK_Q)[None, :]
    i = p // width - q // width + kernel_h // 2
    j = p % width - q % width + kernel_w // 2
    inside = (p < pixels) & (q < pixels)
    inside &= (i >= 0) & (i < kernel_h) & (j >= 0) & (j < kernel_w)
    tap = i * kernel_w + j
    if FLIP:
        tap = kernel_h * kernel_w - 1 - tap
    values = tl.load(weight_ptr + channel * kernel_h * kernel_w + tap, mask=inside, other=0.0)
    target = matrix_ptr + (channel * pixels + p) * length + q
    tl.store(target, values, mask=(p < pixels) & (q < length))


@triton.jit(
    do_not_specialize=[
        "batch",
        "channels",
        "pixel_units",
        "row_units",
        "x_stride_n",
        "x_stride_c",
    ]
)
def dwconv_toeplitz_product_kernel(
    x_ptr,  # [N, C, P], unit stride in P
    matrix_ptr,  # [C, P, row_units * ROW_UNIT]
    bias_ptr,  # [C]
    y_ptr,  # [N, C, P], contiguous
    batch,
    channels,
    pixel_units,
    row_units,
    x_stride_n,
    x_stride_c,
    UNIT: tl.constexpr,
    ROW_UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply BLOCK_M images of one channel by BLOCK_N columns of its matrix per program."""
    pixels = pixel_units * UNIT
    length = row_units * ROW_UNIT
    image_blocks = tl.cdiv(batch, BLOCK_M)
    column_blocks = tl.cdiv(pixels, BLOCK_N)
    pid = tl.program_id(0)
    q = (pid % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    rest = pid // column_blocks
    n = (rest % image_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (rest // image_blocks).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    n_ok = (n < batch)[:, None]
    q_ok = (q < length)[None, :]

    x_offset = n.to(tl.int64) * (x_stride_n.to(tl.int64) * UNIT)
    x_base = x_ptr + channel * x_stride_c * UNIT + x_offset[:, None] + k[None, :]
    matrix_base = matrix_ptr + channel * pixels * length + q[None, :] + k[:, None] * length
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in range(0, pixels, BLOCK_K):
        a = tl.load(x_base + k0, mask=n_ok & (k0 + k < pixels)[None, :], other=0.0)
        b = tl.load(matrix_base + k0 * length, mask=q_ok & (k0 + k < pixels)[:, None], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # a NaN stays one
    target = y_ptr + (n.to(tl.int64) * channels + channel)[:, None] * pixels + q[None, :]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=n_ok & (q < pixels)[None, :])
