"""Triton kernels of the depthwise convolution with large kernels: products with banded matrices.

A row of an image is cut into tiles of TILE_W outputs. Each tile reads a window of WINDOW input
columns that begins OFFSET columns left of it, and is multiplied by a row of the kernel as a matrix:

    y[tile, j] += sum over k of x[tile * TILE_W - OFFSET + k] * band[k, j],
    band[k, j] = w[k - j - (OFFSET - kw//2)], zero where that is no tap.

The products are stacked until they fill a tensor core's tile. Tiles of many images and row blocks,
which need the same band, lie below each other; the bands of ROWS neighbouring output rows, which
read the same input row, lie side by side. A window needs only TILE_W + kw - 1 of its columns, and
a block's loop over kh + ROWS - 1 rows needs kh of them for each output row. So a 31x31 kernel costs
about 2 times its taps, which tensor cores outweigh. OFFSET is a multiple of 16 bytes, so that
windows are copied in pieces of 16 bytes.

Widths and strides are given in units of UNIT elements, from which Triton knows their alignment even
where they are no multiples of 16 (24 columns of bfloat16 are 48 bytes).

Every product is accumulated in float32. UPCAST casts the operands to float32 right after the load,
because Triton's interpreter computes on the bit patterns of bfloat16.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["kernel_h", "kernel_w", "shift"])
def dwconv_band_weights_kernel(
    weight_ptr,  # [C, KH, KW]
    band_ptr,  # [C, KH, WINDOW, TILE_W]
    kernel_h,
    kernel_w,
    shift,  # OFFSET - KW // 2
    FLIP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_WINDOW: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Write the band of one kernel row per program; FLIP turns the kernel by 180 degrees."""
    row = tl.program_id(0).to(tl.int64)  # c * KH + i
    i = row % kernel_h
    source = row - i + (kernel_h - 1 - i) if FLIP else row
    k = tl.arange(0, BLOCK_WINDOW)
    j = tl.arange(0, TILE_W)
    tap = k[:, None] - j[None, :] - shift
    inside = (tap >= 0) & (tap < kernel_w)
    column = kernel_w - 1 - tap if FLIP else tap
    values = tl.load(weight_ptr + source * kernel_w + column, mask=inside, other=0.0)
    target = band_ptr + row * (WINDOW * TILE_W) + k[:, None] * TILE_W + j[None, :]
    tl.store(target, values, mask=(k < WINDOW)[:, None])


@triton.jit
def _add_product(
    acc,
    x_base,  # [M, 1]: column 0 of each window
    band_base,  # [1, N]
    column,  # [M, 1]: the image column of x_base
    width,
    x_ok,
    band_ok,
    K0: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE_W: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Return acc + x[:, K0 : K0 + DEPTH] @ band[K0 : K0 + DEPTH, :]."""
    k = K0 + tl.arange(0, DEPTH)
    inside = (column + k[None, :] >= 0) & (column + k[None, :] < width)
    a = tl.load(x_base + k[None, :], mask=x_ok & inside, other=0.0)
    b = tl.load(band_base + k[:, None] * TILE_W, mask=band_ok, other=0.0)
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit(
    do_not_specialize=[
        "batch",
        "channels",
        "height",
        "width_units",
        "kernel_h",
        "tiles",
        "row_blocks",
        "x_stride_n",
        "x_stride_c",
        "x_stride_h",
    ]
)
def dwconv_band_kernel(
    x_ptr,  # [N, C, H, W], unit stride in W
    band_ptr,  # [C, KH, WINDOW, TILE_W], WINDOW = PIECES * PIECE + TAIL
    bias_ptr,  # [C]
    y_ptr,  # [N, C, H, W], contiguous
    batch,
    channels,
    height,
    width_units,
    kernel_h,
    tiles,  # tiles of TILE_W columns in a row
    row_blocks,  # blocks of ROWS rows
    x_stride_n,
    x_stride_c,
    x_stride_h,
    UNIT: tl.constexpr,
    TILE_W: tl.constexpr,
    PIECE: tl.constexpr,  # the window is cut into parts whose sizes are powers of 2
    PIECES: tl.constexpr,
    TAIL: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Compute BLOCK_M blocks of ROWS x TILE_W outputs of one channel per program."""
    WINDOW: tl.constexpr = PIECES * PIECE + TAIL
    BLOCK_N: tl.constexpr = ROWS * TILE_W
    width = width_units * UNIT
    pad = kernel_h // 2
    tiles_per_row_block = batch * tiles
    blocks = tl.cdiv(row_blocks * tiles_per_row_block, BLOCK_M)
    pid = tl.program_id(0)
    channel = (pid // blocks).to(tl.int64)
    first = (pid % blocks) * BLOCK_M

    m = first + tl.arange(0, BLOCK_M)  # row block, image, tile; row blocks vary slowest
    row_block = m // tiles_per_row_block
    n = (m % tiles_per_row_block) // tiles
    column = (m % tiles) * TILE_W
    start = column - OFFSET
    h0 = row_block * ROWS
    exists = row_block < row_blocks

    q = tl.arange(0, BLOCK_N)
    row = q // TILE_W  # output row within its block
    j = q % TILE_W

    # Step i reads input row i + h0 and the band of kernel row i + pad - row, so that the loop adds
    # the same amount to all addresses.
    row_stride = x_stride_h.to(tl.int64) * UNIT
    x_offset = n * (x_stride_n.to(tl.int64) * UNIT) + h0 * row_stride + start
    x_base = x_ptr + channel * x_stride_c * UNIT + x_offset[:, None]
    band_plane = band_ptr + (channel * kernel_h + pad) * (WINDOW * TILE_W)
    band_base = band_plane + (j - row * (WINDOW * TILE_W))[None, :]

    # The input rows, counted from h0, that exist and that any of these blocks needs.
    first_row_block = first // tiles_per_row_block
    last_row_block = tl.minimum((first + BLOCK_M - 1) // tiles_per_row_block, row_blocks - 1)
    begin = tl.maximum(-pad, -last_row_block * ROWS)
    end = tl.minimum(ROWS + pad, height - first_row_block * ROWS)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(begin, end):
        ok_row = (exists & (h0 + i >= 0) & (h0 + i < height))[:, None]
        x_row = i * row_stride
        kernel_row = i + pad - row
        ok_band = ((kernel_row >= 0) & (kernel_row < kernel_h))[None, :]
        band_row = i * (WINDOW * TILE_W)
        for piece in tl.static_range(PIECES):
            acc = _add_product(
                acc,
                x_base + x_row,
                band_base + band_row,
                start[:, None],
                width,
                ok_row,
                ok_band,
                piece * PIECE,
                PIECE,
                TILE_W,
                UPCAST,
            )
        if TAIL > 0:
            acc = _add_product(
                acc,
                x_base + x_row,
                band_base + band_row,
                start[:, None],
                width,
                ok_row,
                ok_band,
                PIECES * PIECE,
                TAIL,
                TILE_W,
                UPCAST,
            )
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)  # a NaN stays one

    y_plane = (n.to(tl.int64) * channels + channel) * height
    y_row = y_plane[:, None] + (h0[:, None] + row[None, :])
    y_column = column[:, None] + j[None, :]
    ok = exists[:, None] & (h0[:, None] + row[None, :] < height) & (y_column < width)
    tl.store(y_ptr + y_row * width + y_column, acc.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit(
    do_not_specialize=[
        "batch",
        "channels",
        "height",
        "width_units",
        "kernel_h",
        "kernel_w",
        "tiles",
        "pieces",
        "splits",
        "lanes",
        "grad_stride_n",
        "grad_stride_c",
        "grad_stride_h",
        "x_stride_n",
        "x_stride_c",
        "x_stride_h",
    ]
)
def dwconv_band_weight_kernel(
    grad_ptr,  # [N, C, H, W], unit stride in W
    x_ptr,  # the same shape, unit stride in W
    partial_ptr,  # [splits, C, KH, KW, TILE_W], float32
    batch,
    channels,
    height,
    width_units,
    kernel_h,
    kernel_w,
    tiles,
    pieces,  # pieces of PIECE columns that make up the window
    splits,
    lanes,  # input rows that one step takes at once
    grad_stride_n,
    grad_stride_c,
    grad_stride_h,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    UNIT: tl.constexpr,
    TILE_W: tl.constexpr,
    PIECE: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Correlate windows of x with tiles of grad: ROWS kernel rows of one channel per program.

    G[k, (i, j)] = sum of x[m, k] * grad[m - i, j] over m, which counts rows of x, images and tiles.
    Tap (i, s) is the sum over j of G[s + j + (OFFSET - kw//2), (i, j)].
    `dwconv_sum_partials_kernel` adds these up over j and over the splits, always in the same order.
    """
    BLOCK_N: tl.constexpr = ROWS * TILE_W
    width = width_units * UNIT
    pad = kernel_h // 2
    kernel_blocks = tl.cdiv(kernel_h, ROWS)
    pid = tl.program_id(0)
    piece = pid % pieces
    rest = pid // pieces
    i0 = (rest % kernel_blocks) * ROWS
    rest = rest // kernel_blocks
    split = rest % splits
    channel = (rest // splits).to(tl.int64)

    q = tl.arange(0, BLOCK_N)
    i = i0 + q // TILE_W
    j = q % TILE_W
    k = piece * PIECE + tl.arange(0, PIECE)
    x_row_stride = x_stride_h.to(tl.int64) * UNIT
    grad_row_stride = grad_stride_h.to(tl.int64) * UNIT
    x_plane = x_ptr + channel * x_stride_c * UNIT + (k - OFFSET)[None, :]
    # Row m of x meets row m + pad - i of grad.
    grad_plane = grad_ptr + channel * grad_stride_c * UNIT + j[None, :]
    grad_plane += ((pad - i) * grad_row_stride)[None, :]
    tiles_per_row = batch * tiles
    chunks = tl.cdiv(lanes * tiles_per_row, BLOCK_K)

    # The input rows that meet a row of grad under any of these kernel rows.
    begin = tl.maximum(i0 - pad, 0)
    end = tl.minimum(height, height + tl.minimum(i0 + ROWS, kernel_h) - 1 - pad)
    acc = tl.zeros((PIECE, BLOCK_N), dtype=tl.float32)
    for chunk in range(split, chunks, splits):
        m = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        lane = m // tiles_per_row
        n = (m % tiles_per_row) // tiles
        column = (m % tiles) * TILE_W
        x_column = (column - OFFSET)[:, None] + k[None, :]
        x_ok = (x_column >= 0) & (x_column < width)
        x_line = n * (x_stride_n.to(tl.int64) * UNIT) + lane * x_row_stride + column
        x_base = x_plane + x_line[:, None]
        grad_ok = (column[:, None] + j[None, :] < width) & (i < kernel_h)[None, :]
        grad_line = n * (grad_stride_n.to(tl.int64) * UNIT) + lane * grad_row_stride + column
        grad_base = grad_plane + grad_line[:, None]
        for step in range(begin, end, lanes):
            row = step + lane
            row_ok = ((lane < lanes) & (row < end))[:, None]
            h = row[:, None] + (pad - i)[None, :]
            grad_row_ok = row_ok & (h >= 0) & (h < height)
            a = tl.load(x_base + step * x_row_stride, mask=row_ok & x_ok, other=0.0)
            b = tl.load(grad_base + step * grad_row_stride, mask=grad_row_ok & grad_ok, other=0.0)
            if UPCAST:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(tl.trans(a), b, acc, input_precision="ieee")

    tap = k[:, None] - j[None, :] - (OFFSET - kernel_w // 2)
    line = ((split * channels + channel) * kernel_h + i)[None, :] * kernel_w + tap
    inside = (tap >= 0) & (tap < kernel_w) & (i < kernel_h)[None, :]
    tl.store(partial_ptr + line * TILE_W + j[None, :], acc, mask=inside)


@triton.jit(do_not_specialize=["taps", "kernel_w", "shift", "window", "splits"])
def dwconv_sum_partials_kernel(
    partial_ptr,  # [splits, taps, TILE_W], float32
    out_ptr,  # [taps]
    taps,  # C * KH * KW
    kernel_w,
    shift,
    window,
    splits,
    TILE_W: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Sum the partial weight gradients over splits and j, without those that were never written."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    j = tl.arange(0, TILE_W)
    k = (t % kernel_w)[:, None] + j[None, :] + shift
    written = (k >= 0) & (k < window)
    acc = tl.zeros((BLOCK_T, TILE_W), dtype=tl.float32)
    for split in range(splits):
        line = split * taps.to(tl.int64) + t
        # A line has one mask, so that it is read in pieces of 16 bytes.
        source = partial_ptr + line[:, None] * TILE_W + j[None, :]
        values = tl.load(source, mask=(t < taps)[:, None], other=0.0)
        acc += tl.where(written, values, 0.0)
    tl.store(out_ptr + t, tl.sum(acc, 1).to(out_ptr.dtype.element_ty), mask=t < taps)
