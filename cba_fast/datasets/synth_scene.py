"""Draw one image of the generated data set: a cluttered background, an animal and its box."""

from dataclasses import dataclass

import cv2
import numpy as np

from .synth_animals import Species, individual
from .synth_render import Coat, Tube, View, extent, paint

OVERSAMPLE = 2  # the animal is painted at twice the size, so that averaging smooths its outline
MIN_VISIBLE = 0.55  # share of the animal's bounding box that must stay inside the image

# Near and far colours of the grounds (RGB), with little saturation, so that no background competes
# with a class's mark.
SCENES = (
    ((0.36, 0.37, 0.27), (0.50, 0.52, 0.44)), ((0.45, 0.40, 0.32), (0.55, 0.53, 0.50)),
    ((0.30, 0.30, 0.25), (0.36, 0.39, 0.33)), ((0.50, 0.48, 0.44), (0.62, 0.64, 0.66)),
    ((0.40, 0.36, 0.30), (0.30, 0.29, 0.26)), ((0.56, 0.54, 0.47), (0.44, 0.45, 0.41)),
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One generated image.

    Attributes:
        image: (S,S,3) uint8 RGB.
        mask: (S,S) bool, the pixels that show the animal.
        box: x0, y0, x1, y1 of the mask, inclusive.
    """

    image: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]


def draw(kind: Species, size: int, rng: np.random.Generator) -> Drawing:
    """Draw one animal of `kind` in a scene of its own.

    Args:
        kind: the class.
        size: side of the image in pixels, at least 32.
        rng: source of all randomness; the same state gives the same pixels.
    """
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.8, -0.2), 0.0])
    light[2] = np.sqrt(max(0.2, 1 - light @ light))
    light = (light / np.linalg.norm(light)).astype(np.float32)
    image = _background(size, light, rng)
    tubes = individual(kind, rng)
    view = _place(tubes, kind.plan in ("Lizard", "Beetle"), size, rng)
    rgb, alpha = _animal(tubes, view, size, light, rng)
    image = _shadow(image, alpha, light, size, rng)
    image = image * (1 - alpha[..., None]) + rgb
    if rng.random() < 0.5:
        layer, cover = _foreground(size, rng)
        image = image * (1 - cover[..., None]) + layer
        alpha = alpha * (1 - cover)
    mask = alpha > 0.5
    if not mask.any():  # what is inside the frame is thinner than a pixel: take another pose
        return draw(kind, size, rng)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1]))
    return Drawing(_weather(image, size, rng), mask, box)


def _place(tubes: list[Tube], from_above: bool, size: int, rng) -> View:
    """Choose pose, size and position; one animal in four is cut by the frame."""
    if from_above:
        angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1)
    else:
        angle, squeeze = rng.normal(0, 0.16), rng.uniform(0.72, 1)
    mirror = rng.random() < 0.5
    x0, y0, x1, y1 = extent(tubes, View(1.0, angle, mirror, squeeze))
    target = size * np.exp(rng.uniform(np.log(0.45), np.log(0.82)))
    scale = target / max(x1 - x0, y1 - y0)
    width, height = scale * (x1 - x0), scale * (y1 - y0)
    out = rng.uniform(0.1, 1 - np.sqrt(MIN_VISIBLE)) if rng.random() < 0.25 else -0.01
    left = _anywhere(width, out, size, rng)
    top = _anywhere(height, out, size, rng)
    return View(scale, angle, mirror, squeeze, (left - scale * x0, top - scale * y0))


def _anywhere(length: float, out: float, size: int, rng) -> float:
    """Return the start of an interval of `length`, up to a share `out` of which lies outside."""
    low, high = -out * length, size - (1 - out) * length
    # Wildlife photographs seldom centre their animal: prefer the two ends of the range.
    share = rng.beta(0.3, 0.3)
    return low + share * (high - low)


def _animal(tubes, view: View, size: int, light, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return the animal's colours times its opacity (S,S,3) and its opacity (S,S), both float32."""
    big = OVERSAMPLE * size
    rgb = np.zeros((big, big, 3), np.float32)
    alpha = np.zeros((big, big), np.uint8)
    center = (OVERSAMPLE * view.center[0] + 0.5, OVERSAMPLE * view.center[1] + 0.5)
    large = View(OVERSAMPLE * view.scale, view.angle, view.mirror, view.squeeze, center)
    paint(tubes, large, rgb, alpha, light, rng)
    color = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)
    opacity = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_AREA)
    return color, opacity.astype(np.float32) / 255


def _background(size: int, light, rng) -> np.ndarray:
    scene = SCENES[rng.integers(len(SCENES))]
    ground, far = (
        np.float32(np.array(c) + rng.normal(0, 0.05) + rng.normal(0, 0.012, 3)) for c in scene
    )
    horizon = rng.uniform(-0.3, 0.7)
    rows = (np.arange(size) / size - horizon) / rng.uniform(0.05, 0.6)
    share = np.clip(rows, 0, 1).astype(np.float32)[:, None, None]
    image = far * (1 - share) + ground * share  # [S, 1, 3]
    image = image * (1 + _clouds(size, (3, 7, 15, 40, 90), rng)[..., None])
    image = _litter(image, size, rng, count=int(rng.integers(15, 45)), dim=0.75)
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), size / 256 * rng.uniform(0.6, 2.5))
    for _ in range(int(rng.integers(0, 4))):
        _distractor(image, size, light, rng)
    return _litter(image, size, rng, count=int(rng.integers(8, 30)), dim=1.0)


def _clouds(size: int, grids: tuple[int, ...], rng) -> np.ndarray:
    """Sum smooth noise of several grid sizes, (S,S) with a standard deviation of about 0.15."""
    total = np.zeros((size, size), np.float32)
    for cells in grids:
        cells = min(cells, size)
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return total * np.float32(0.15 / np.sqrt(len(grids)))


def _muted(rng, spread: float = 0.05) -> np.ndarray:
    """Draw an earth colour: grey plus a little brown or green."""
    grey = rng.uniform(0.2, 0.7)
    warm = rng.uniform(-0.03, 0.09)
    return np.clip([grey + warm, grey + 0.4 * warm + rng.normal(0, spread / 2), grey - warm], 0, 1)


def _litter(image: np.ndarray, size: int, rng, count: int, dim: float) -> np.ndarray:
    """Return `image` with grass blades, twigs and leaves on it."""
    image = np.clip(image * 255, 0, 255).astype(np.uint8)  # OpenCV smooths lines in uint8 only
    for _ in range(count):
        color = tuple(float(c) * 255 * dim for c in _muted(rng))
        start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        if rng.random() < 0.65:
            angle = rng.normal(-np.pi / 2, 0.6)  # most grow upwards
        length = size * rng.uniform(0.05, 0.3)
        if rng.random() < 0.35:
            axes = (max(1, int(0.2 * length)), max(1, int(0.08 * length)))
            center = (int(start[0]), int(start[1]))
            degrees = float(np.degrees(angle))
            cv2.ellipse(image, center, axes, degrees, 0, 360, color, -1, cv2.LINE_AA)
        else:
            _blade([(image, color)], start, angle, length, max(1, round(size * 0.006)), rng)
    return image.astype(np.float32) / 255


def _blade(targets, start, angle, length, thickness: int, rng) -> None:
    """Draw one bent blade on each (image, color) of `targets`."""
    t = np.linspace(0, 1, 8)[:, None]
    bend = rng.normal(0, 0.25) * length
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    points = start + length * t * along + bend * t**2 * across
    points = np.round(points * 16).astype(np.int32)
    for target, color in targets:
        cv2.polylines(target, [points], False, color, thickness, cv2.LINE_AA, 4)


def _distractor(image: np.ndarray, size: int, light, rng) -> None:
    """Paint a stone, a log or a clump with the animals' own brush, in earth colours."""
    coat = Coat(
        tuple(_muted(rng)),
        tuple(_muted(rng)),
        ("plain", "patches", "speckle", "stripes", "spots")[rng.integers(5)],
        float(rng.uniform(3, 9)),
    )
    shape = rng.integers(3)
    if shape == 0:  # stone
        spine = np.array([(-0.3, 0), (0.05, rng.normal(0, 0.1)), (0.3, 0)])
        tubes = [Tube(spine, rng.uniform(0.2, 0.4, 3), coat)]
    elif shape == 1:  # log or branch, with a fork
        spine = np.column_stack([np.linspace(-0.9, 0.9, 4), rng.normal(0, 0.12, 4)])
        fork = spine[1] + np.array([(0, 0), (0.25, -0.25), (0.4, -0.55)])
        thick = rng.uniform(0.05, 0.13)
        tubes = [
            Tube(fork, thick * np.array([0.6, 0.5, 0.3]), coat),
            Tube(spine, np.full(4, thick), coat),
        ]
    else:  # clump of leaves
        tubes = []
        for _ in range(5):
            at = rng.normal(0, 0.2, 2)
            tip = at + rng.normal(0, 0.25, 2)
            leaf = np.array([at, (at + tip) / 2 + 0.03, tip])
            gain = rng.uniform(0.7, 1.1)
            tubes.append(Tube(leaf, np.array([0.02, 0.1, 0.01]), coat, gain))
    center = tuple(rng.uniform(0, size, 2))
    scale = size * rng.uniform(0.12, 0.42)
    view = View(scale, rng.uniform(-0.6, 0.6), rng.random() < 0.5, 1.0, center)
    paint(tubes, view, image, np.zeros((size, size), np.uint8), light, rng)


def _shadow(image, alpha, light, size: int, rng) -> np.ndarray:
    """Darken the ground beside the animal, away from the light."""
    length = size * rng.uniform(0.01, 0.05)
    shift = np.array([[1, 0, -light[0] * 2 * length], [0, 1, length]], np.float32)
    shade = cv2.warpAffine(alpha, shift, (size, size))
    shade = cv2.GaussianBlur(shade, (0, 0), size * 0.02)
    return image * (1 - np.float32(rng.uniform(0.2, 0.5)) * shade[..., None])


def _foreground(size: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a few blades in front of everything: colours (S,S,3), and opacity (S,S)."""
    layer, cover = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        color = tuple(float(c) * 255 for c in _muted(rng))
        start = np.array([rng.uniform(0, size), size * rng.uniform(0.6, 1.1)])
        angle, length = rng.normal(-np.pi / 2, 0.35), size * rng.uniform(0.2, 0.6)
        thickness = max(1, round(size * 0.008))
        _blade([(layer, color), (cover, 255)], start, angle, length, thickness, rng)
    # Smoothed lines on black hold colour times opacity already.
    return layer.astype(np.float32) / 255, cover.astype(np.float32) / 255


def _weather(image: np.ndarray, size: int, rng) -> np.ndarray:
    """Apply exposure, tint, uneven light, lens blur and sensor noise; return uint8."""
    slope = rng.normal(0, 0.12, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    field = 1 + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    field = field * (1 + _clouds(size, (3, 5), rng))  # dappled light
    tint = rng.uniform(0.8, 1.2) * (1 + rng.normal(0, 0.02, 3))
    image = image * field[..., None] * tint.astype(np.float32)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), size / 256 * rng.uniform(0.4, 1.1))
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    image = image * 255 + noise * np.float32(rng.uniform(1.5, 6))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
