"""The shapes that the benchmarks measure, and where they come from."""

from itertools import product

from cba_fast.bench.dwconv_contest import Case

BATCHES = (1, 8)

# The channels, side of the feature map and kernel of the four stages of RepLKNet-31B (Ding et al.,
# Scaling Up Your Kernels to 31x31, CVPR 2022: kernels 31, 29, 27, 13 and channels 128 to 1024 at
# strides 4 to 32), for images of 384 pixels as in the study and of 224 as for ImageNet.
REPLKNET = [
    *((128, 96, 31), (256, 48, 29), (512, 24, 27), (1024, 12, 13)),
    *((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13)),
]

# The largest kernel of the study's slak_flex (with beta other than 0), at 384 pixels.
LARGEST = [(128, 96, 51)]

# The channels, side, kernel height and kernel width of the strips of SLaK-T (Liu et al., More
# ConvNets in the 2020s, ICLR 2023) at 384 pixels: kernels 51, 49 and 47 with 5, widths 1.3 times
# 96, 192 and 384. The last two are the first stage of slak_flex.
STRIPS = [
    *((124, 96, 51, 5), (124, 96, 5, 51)),
    *((249, 48, 49, 5), (249, 48, 5, 49)),
    *((499, 24, 47, 5), (499, 24, 5, 47)),
    *((128, 96, 51, 1), (128, 96, 1, 51)),
]


def square_cases(shapes) -> list[Case]:
    """Return the cases of shapes (channels, side, kernel) for each batch size."""
    return [Case(c, e, e, k, k, n) for n, (c, e, k) in product(BATCHES, shapes)]


DWCONV = {
    "replknet": square_cases(REPLKNET),
    "largest": square_cases(LARGEST),
    "strips": [Case(c, e, e, kh, kw, n) for n, (c, e, kh, kw) in product(BATCHES, STRIPS)],
}

# The models of the study (Yasuki and Taki, CAM Back Again, CVPR 2024) and SLaK-T, with the input
# sizes of the study and of ImageNet.
MODELS = ["replknet_31b", "convnext_base.fb_in22k_ft_in1k_384", "slak_tiny", "slak_flex_base"]
MODEL_SIZES = [384, 224]

# Training steps: model, input size, batch size.
TRAINING = [("replknet_31b", 224, 4)]
