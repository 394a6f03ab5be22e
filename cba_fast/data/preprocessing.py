"""What happens to the values of an image before a network sees them; plain values, no PyTorch."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the whole image to the input's size, scale to [0, 1], subtract mean, divide by std.

    Nothing is cropped: a box outside of a crop could not be found.

    Attributes:
        interpolation: that of the antialiased resize, such as "bilinear" or "bicubic".
        mean, std: of the red, green and blue values from 0 to 1.
    """

    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


STUDY = Preprocessing()
# What RepLKNet's script of the ERF map does.
ERF_MAP = Preprocessing("bicubic", IMAGENET_MEAN, IMAGENET_STD)
