"""Paint tubes, from which the generated animals and the clutter around them are made.

A tube is a spine with a radius at each point, filled with a coat (colours and a pattern), shaded as
a rounded body under a directional light.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Coat:
    """Two colours and how they mix.

    Attributes:
        base, second: RGB in [0, 1].
        pattern: "plain", "stripes", "spots", "patches", "bands" or "speckle".
        freq: cycles of the pattern per unit of length.
    """

    base: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str = "plain"
    freq: float = 6.0

    def shifted(self, delta: np.ndarray) -> "Coat":
        """Return this coat with both colours moved by `delta` (3,)."""
        base, second = (
            tuple(np.clip(np.add(c, delta), 0.02, 0.98)) for c in (self.base, self.second)
        )
        return replace(self, base=base, second=second)


@dataclass(frozen=True)
class Tube:
    """One body part in the object's own frame (x to the head, y down, body length about 1).

    Attributes:
        spine: (k,2) points, k >= 2; drawn as a smooth curve through them.
        radii: (k,) half widths at the points.
        coat: how it is painted.
        gain: brightness; below 1 for limbs on the far side.
    """

    spine: np.ndarray
    radii: np.ndarray
    coat: Coat
    gain: float = 1.0


@dataclass(frozen=True)
class View:
    """The place of an object in the image: squeezed along x, mirrored, rotated, scaled, moved.

    Attributes:
        scale: pixels per unit of length.
        angle: rotation in radians, clockwise on the screen.
        mirror: whether the object looks to the left.
        squeeze: foreshortening along the object's x axis, at most 1.
        center: where the object's origin lands, (x, y) in pixels.
    """

    scale: float
    angle: float = 0.0
    mirror: bool = False
    squeeze: float = 1.0
    center: tuple[float, float] = (0.0, 0.0)
    matrix: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        c, s = np.cos(self.angle), np.sin(self.angle)
        flip = -self.squeeze if self.mirror else self.squeeze
        matrix = self.scale * np.array([[c * flip, -s], [s * flip, c]])
        object.__setattr__(self, "matrix", matrix)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map (k,2) object points to (k,2) pixel coordinates."""
        return points @ self.matrix.T + np.array(self.center)


def smooth(points: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample a Catmull-Rom curve through `points` (k,2) and `values` (k,) at about `count` places.

    Source: Catmull and Rom (1974), uniform parameter, end points doubled.
    """
    rows = np.column_stack([points, values])
    p = np.vstack([2 * rows[0] - rows[1], rows, 2 * rows[-1] - rows[-2]])
    per = max(2, count // (len(rows) - 1))
    t = (np.arange(per) / per)[None, :, None]
    p0, p1, p2, p3 = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )  # fmt: skip
    curve = np.vstack([curve.reshape(-1, 3), rows[-1]])
    return curve[:, :2], np.maximum(curve[:, 2], 0)


def extent(tubes: list[Tube], view: View) -> tuple[float, float, float, float]:
    """Return the bounding box x0, y0, x1, y1 of all tubes in pixels, not cut at the image."""
    boxes = []
    for tube in tubes:
        points, radii = smooth(tube.spine, tube.radii, 12)
        points, radii = view.to_pixels(points), radii[:, None] * view.scale
        boxes.append([*(points - radii).min(0), *(points + radii).max(0)])
    corners = np.array(boxes)
    return (*corners[:, :2].min(0), *corners[:, 2:].max(0))


def paint(
    tubes: list[Tube],
    view: View,
    rgb: np.ndarray,
    alpha: np.ndarray,
    light: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Paint `tubes` in order over `rgb` (H,W,3 float32) and set `alpha` (H,W uint8) to 255 there.

    Args:
        light: (3,) float32 unit vector towards the light; x right, y down, z towards the camera.
        rng: draws the grain of the coat.
    """
    grain = rng.standard_normal((64, 64)).astype(np.float32)
    for tube in tubes:
        _paint_tube(tube, view, rgb, alpha, light, grain)


def _paint_tube(tube, view, rgb, alpha, light, grain) -> None:
    height, width = alpha.shape
    steps = np.diff(tube.spine, axis=0)
    length = float(np.hypot(steps[:, 0], steps[:, 1]).sum())
    count = int(np.clip(3 * length / tube.radii.mean(), 4, 24))  # a thick tube needs few samples
    points, radii = smooth(tube.spine, tube.radii, count)
    points, radii = view.to_pixels(points), np.maximum(radii * view.scale, 0.9)
    x0, y0 = np.maximum(np.floor((points - radii[:, None]).min(0)).astype(int) - 2, 0)
    x1, y1 = np.ceil((points + radii[:, None]).max(0)).astype(int) + 3
    x1, y1 = min(x1, width), min(y1, height)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    mask = _tube_mask(points - (x0, y0), radii, (y1 - y0, x1 - x0))
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    thickest = float(depth.max())
    if thickest == 0:
        return
    color = _coat_color(tube, view, (x0, y0, x1, y1), grain)
    color *= (np.float32(tube.gain) * _shade(depth, thickest, light))[..., None]
    inside = mask > 0
    rgb[y0:y1, x0:x1][inside] = color[inside]
    alpha[y0:y1, x0:x1][inside] = 255


def _tube_mask(points: np.ndarray, radii: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # A tube is drawn as discs joined by quads. The polygon of its outline would leave holes where a
    # bent tube overlaps itself.
    mask = np.zeros(shape, np.uint8)
    step = np.diff(points, axis=0)
    length = np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)[:, None]
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / length
    r0, r1 = radii[:-1, None], radii[1:, None]
    a, b = points[:-1], points[1:]
    quads = np.stack([a + normal * r0, b + normal * r1, b - normal * r1, a - normal * r0], 1)
    for quad in np.round(quads * 16).astype(np.int32):
        cv2.fillConvexPoly(mask, quad, 255, cv2.LINE_8, 4)
    for (x, y), r in zip(np.round(points * 16).astype(int), np.round(radii * 16).astype(int)):
        cv2.circle(mask, (int(x), int(y)), int(r), 255, -1, cv2.LINE_8, 4)
    return mask


def _shade(depth: np.ndarray, thickest: float, light: np.ndarray) -> np.ndarray:
    """Return brightness by Lambert's law for a rounded body with darker rims."""
    d = np.minimum(depth / thickest, 1)
    body = cv2.GaussianBlur(np.sqrt(d * (2 - d)) * thickest, (0, 0), max(0.7, 0.08 * thickest))
    gx = cv2.Sobel(body, cv2.CV_32F, 1, 0, scale=0.125)
    gy = cv2.Sobel(body, cv2.CV_32F, 0, 1, scale=0.125)
    cosine = (light[2] - gx * light[0] - gy * light[1]) / np.sqrt(1 + gx * gx + gy * gy)
    return (0.42 + 0.72 * np.maximum(cosine, 0)) * (0.8 + 0.2 * np.minimum(depth / 3, 1))


def _coat_color(tube: Tube, view: View, window, grain: np.ndarray) -> np.ndarray:
    """Return the unshaded colour (h,w,3) of the pixels of `window` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = window
    inverse = np.linalg.inv(view.matrix).astype(np.float32)
    dx = np.arange(x0, x1, dtype=np.float32) - np.float32(view.center[0])
    dy = np.arange(y0, y1, dtype=np.float32) - np.float32(view.center[1])
    x = inverse[0, 0] * dx[None] + inverse[0, 1] * dy[:, None]
    y = inverse[1, 0] * dx[None] + inverse[1, 1] * dy[:, None]
    axis = tube.spine[-1] - tube.spine[0]
    axis = (axis / max(float(np.hypot(*axis)), 1e-6)).astype(np.float32)
    along, across = x * axis[0] + y * axis[1], y * axis[0] - x * axis[1]
    coat = tube.coat
    share = _pattern(coat, along, across, grain)[..., None]
    base, second = np.array([coat.base, coat.second], np.float32)
    color = base * (1 - share) + second * share
    fur = _noise(grain, along * 9, across * 38)  # long along the part, as hair and feathers are
    return color * (1 + 0.1 * fur)[..., None]


def _pattern(coat: Coat, along: np.ndarray, across: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Return the share of the second colour in [0, 1]."""
    f = np.float32(coat.freq)
    if coat.pattern == "plain":
        return np.clip(0.5 + 2.2 * across, 0, 1) * 0.35  # a paler or darker belly
    if coat.pattern == "stripes":
        wave = np.sin(6.2832 * f * along + 1.4 * _noise(grain, 3 * along, 3 * across))
    elif coat.pattern == "bands":
        wave = np.sin(6.2832 * 0.6 * f * across + 0.7 * _noise(grain, 2 * along, 2 * across))
    elif coat.pattern == "spots":
        shift = np.floor(f * across) % 2 * 0.5  # brick pattern of round spots, jittered
        u = (f * along + shift + 0.22 * _noise(grain, 4 * along, 4 * across)) % 1 - 0.5
        v = (f * across) % 1 - 0.5
        wave = 7 * (0.34 - np.sqrt(u * u + v * v))
    elif coat.pattern == "patches":
        wave = 2.5 * _noise(grain, 0.7 * f * along, 0.7 * f * across)
    else:  # speckle
        wave = 2 * _noise(grain, 4 * f * along, 4 * f * across) - 1
    return np.clip(0.5 + 1.8 * wave, 0, 1)


def _noise(grain: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sample the repeated tile `grain` at (u, v): about zero mean, values mostly in [-1, 1]."""
    return 0.7 * cv2.remap(
        grain, u + np.float32(31.5), v + np.float32(31.5), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
