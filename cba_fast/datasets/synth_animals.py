# ruff: noqa: RUF005  (points are NumPy arrays: "head + (dx, dy)" is a vector sum)
"""The animals of the generated data set: classes, and individuals of a class in a pose.

A class is a body plan (bird, quadruped, lizard, beetle) with its own proportions, a coat of its own
hue, and one marked part (head, wing, tail, ...) in a stronger colour and pattern of its own. The
coat tells the class too, so that a small network learns the set within minutes on a CPU; the mark
tells it most clearly, so that class activation maps light up a part of the object.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from .synth_render import Coat, Tube

MUTED = (
    (0.42, 0.33, 0.25), (0.55, 0.46, 0.36), (0.35, 0.35, 0.36), (0.60, 0.58, 0.54),
    (0.27, 0.23, 0.21), (0.47, 0.44, 0.33), (0.52, 0.37, 0.27), (0.70, 0.64, 0.54),
)  # fmt: skip
MARKS = {
    "Scarlet": (0.72, 0.18, 0.14), "Golden": (0.85, 0.66, 0.15), "Azure": (0.20, 0.45, 0.75),
    "Ivory": (0.93, 0.90, 0.82), "Ebony": (0.08, 0.08, 0.09), "Emerald": (0.14, 0.52, 0.30),
    "Violet": (0.48, 0.27, 0.62), "Orange": (0.88, 0.45, 0.12),
}  # fmt: skip
MARK_PATTERNS = {
    "plain": "patched", "stripes": "striped", "spots": "spotted",
    "bands": "banded", "patches": "blotched",
}  # fmt: skip
PLANS = {
    "Bird": ("head", "wing", "tail"),
    "Hound": ("head", "torso", "tail"),
    "Lizard": ("head", "torso", "tail"),
    "Beetle": ("head", "torso"),
}


@dataclass(frozen=True)
class Species:
    """One class.

    Attributes:
        name: for example "Scarlet_striped_tail_Bird".
        plan: key of `PLANS`.
        marked: the part that carries `mark`.
        coat, mark, limb: the coats of the body, of the marked part, and of legs, beak and feelers.
        shape: proportions in [0, 1], read by the body plan in its own way.
    """

    name: str
    plan: str
    marked: str
    coat: Coat
    mark: Coat
    limb: Coat
    shape: tuple[float, ...]


def species(seed: int, index: int) -> Species:
    """Return class `index` of the data set of `seed`.

    Body plans take turns, and so do the marks' colours within a plan, from a random start: up to 8
    classes of a plan have marks of different colours. Everything else is drawn at random.
    """
    first = np.random.default_rng([seed, 0])
    colors, start = list(MARKS), int(first.integers(len(MARKS)))
    turn, plan_index = divmod(index, len(PLANS))
    plan = list(PLANS)[plan_index]
    rng = np.random.default_rng([seed, 1, index])
    color = colors[(start + 3 * turn + 5 * plan_index) % len(colors)]
    pattern = list(MARK_PATTERNS)[int(rng.integers(len(MARK_PATTERNS)))]
    marked = PLANS[plan][(turn + plan_index) % len(PLANS[plan])]
    second, limb = rng.permutation(len(MUTED))[:2]
    coat_pattern = ("plain", "patches", "speckle", "stripes")[int(rng.integers(4))]
    # Steps of the golden angle keep the hues within a plan apart, however many classes there are;
    # a quarter step between plans does so for the classes of neighbouring plans.
    hue = (first.random() + 0.381966 * (turn + plan_index / len(PLANS))) % 1
    base, shade = (colorsys.hsv_to_rgb(hue, 0.75, value) for value in rng.permutation((0.72, 0.48)))
    coat = Coat(base, shade, coat_pattern, float(rng.uniform(3, 7)))
    # The mark's second colour: dark on a light mark, light on a dark one.
    ground = MARKS[color]
    other = (0.12, 0.11, 0.10) if sum(ground) > 1.0 else (0.86, 0.82, 0.72)
    freq = float(rng.uniform(7, 12)) if marked != "torso" else float(rng.uniform(4, 7))
    mark = Coat(ground, other if pattern != "plain" else ground, pattern, freq)
    leg = Coat(MUTED[limb], MUTED[second])
    name = f"{color}_{MARK_PATTERNS[pattern]}_{marked}_{plan}"
    return Species(name, plan, marked, coat, mark, leg, tuple(rng.uniform(0, 1, 8)))


def individual(kind: Species, rng: np.random.Generator) -> list[Tube]:
    """Return the parts of one animal in one pose, from back to front."""
    coat = kind.coat.shifted(rng.normal(0, 0.025) + rng.normal(0, 0.012, 3))
    mark = kind.mark.shifted(rng.normal(0, 0.025) + rng.normal(0, 0.015, 3))
    limb = kind.limb.shifted(np.full(3, rng.normal(0, 0.05)))
    wobble = np.clip(np.array(kind.shape) + rng.normal(0, 0.07, len(kind.shape)), 0, 1)
    kind = replace(kind, coat=coat, mark=mark, limb=limb, shape=tuple(wobble))
    plans = {"Bird": _bird, "Hound": _hound, "Lizard": _lizard, "Beetle": _beetle}
    return plans[kind.plan](kind, rng)


def _tube(points, radii, coat: Coat, gain: float = 1.0) -> Tube:
    return Tube(np.array(points, dtype=np.float64), np.array(radii, dtype=np.float64), coat, gain)


def _coats(kind: Species) -> dict[str, Coat]:
    return {part: kind.mark if part == kind.marked else kind.coat for part in PLANS[kind.plan]}


def _turn(points, pivot, angle: float) -> np.ndarray:
    """Rotate points about `pivot` by `angle` radians (positive: x towards y, downwards)."""
    c, s = np.cos(angle), np.sin(angle)
    pivot = np.array(pivot)
    return (np.array(points) - pivot) @ np.array([[c, s], [-s, c]]) + pivot


def _eye(x: float, y: float, r: float) -> list[Tube]:
    dark = Coat((0.03, 0.03, 0.03), (0.03, 0.03, 0.03))
    light = Coat((0.95, 0.95, 0.9), (0.95, 0.95, 0.9))
    spark = (x + 0.3 * r, y - 0.4 * r)
    return [
        _tube([(x, y), (x + 1e-3, y)], [r, r], dark),
        _tube([spark, (spark[0] + 1e-3, spark[1])], [0.3 * r, 0.3 * r], light, 1.3),
    ]


def _bird(kind: Species, rng) -> list[Tube]:
    neck, beak, tail, leg, plump, crest, hook, _ = kind.shape
    coats, limb = _coats(kind), kind.limb
    fat = 0.19 + 0.1 * plump
    head = np.array([0.42 + 0.12 * neck, -0.26 - 0.3 * neck]) + rng.normal(0, 0.03, 2)
    radius = 0.125 + 0.03 * plump
    nod = rng.normal(0, 0.25)
    tip = head + (radius + 0.1 + 0.25 * beak, 0.04 + 0.12 * hook)
    bill = _turn([head + (0.6 * radius, 0), (head + tip) / 2 + (0.03, -0.03), tip], head, nod)
    tail_end = 0.3 + 0.45 * tail
    straight = [(-0.36, 0.02), (-0.4 - 0.5 * tail_end, 0.05), (-0.4 - tail_end, 0.07)]
    tail_pts = _turn(straight, (-0.36, 0.02), rng.normal(0.05, 0.22))
    parts = [_tube(tail_pts, [0.09, 0.08, 0.05 + 0.07 * crest], coats["tail"])]
    for far, x in ((True, 0.02), (False, 0.1)):
        step, length = rng.normal(0, 0.09), 0.14 + 0.32 * leg
        foot = (x + step, fat + length)
        gain = 0.7 if far else 1.0
        parts.append(_tube([(x, 0.6 * fat), (x - 0.03, fat + 0.5 * length), foot],
                           [0.045, 0.02, 0.018], limb, gain))  # fmt: skip
        parts.append(_tube([foot, (foot[0] + 0.09, foot[1] + 0.015)], [0.018, 0.01], limb, gain))
    if rng.random() < 0.25:  # wings raised: the far one shows behind the body
        lift = rng.uniform(0.9, 1.7)
        far_wing = _turn([(0.2, -0.06), (-0.2, -0.05), (-0.6, 0)], (0.15, -0.06), lift + 0.3)
        parts.append(_tube(far_wing, [0.06, 0.15, 0.03], coats["wing"], 0.7))
    else:
        lift = rng.normal(0, 0.1)
    parts.append(_tube([(-0.42, 0.03), (-0.15, 0.02), (0.15, 0), (0.36, -0.06)],
                       [0.07, fat, 1.04 * fat, 0.7 * fat], kind.coat))  # fmt: skip
    parts.append(_tube([(0.28, -0.05), (0.36 + 0.06 * neck, -0.16 - 0.1 * neck), head],
                       [0.75 * fat, 0.13, 0.9 * radius], kind.coat))  # fmt: skip
    parts.append(_tube(bill, [0.055, 0.04, 0.008], limb))
    top = head + (-0.3 * radius, -0.7 * radius)
    if crest > 0.55:
        plume = [top, top + (-0.1, -0.06 - 0.1 * crest), top + (-0.2 - 0.1 * crest, -0.12)]
        parts.append(_tube(_turn(plume, head, nod), [0.05, 0.035, 0.005], coats["head"]))
    nape, front = head - (0.03, 0), head + (0.03, 0.01)
    parts.append(_tube(_turn([nape, front], head, nod), [radius, 0.95 * radius], coats["head"]))
    eye = _turn([head + (0.35 * radius, -0.2 * radius)], head, nod)[0]
    parts += _eye(*eye, 0.028)  # type: ignore[call-arg]
    wing = _turn([(0.22, -0.04), (-0.05, 0), (-0.32, 0.05), (-0.56, 0.07)], (0.15, -0.04), lift)
    parts.append(_tube(wing, [0.07, 0.15, 0.11, 0.02], coats["wing"], 1.05))
    return parts


def _hound(kind: Species, rng) -> list[Tube]:
    neck, muzzle, tail, leg, bulk, ear, horn, slope = kind.shape
    coats, limb = _coats(kind), kind.coat
    fat = 0.13 + 0.1 * bulk
    length = 0.28 + 0.34 * leg
    parts = []

    def legs(far: bool):
        gait = rng.normal(0, 0.28, 2)
        for hip, swing, bend in (((-0.38, 0.02), gait[0], 0.08), ((0.33, 0.02), gait[1], -0.05)):
            knee = (hip[0] + bend + 0.3 * length * swing, hip[1] + fat * 0.6 + 0.5 * length)
            foot = (hip[0] - 0.02 + length * swing, hip[1] + fat * 0.7 + length)
            toe = (foot[0] + 0.07, foot[1] + 0.005)
            parts.append(_tube([hip, knee, foot], [0.12, 0.06, 0.035], limb, 0.62 if far else 1))
            parts.append(_tube([foot, toe], [0.035, 0.025], kind.limb, 0.62 if far else 1))

    legs(True)
    lift = rng.normal(0.1, 0.5)
    far_end = 0.2 + 0.55 * tail
    line = [(-0.46, -0.06), (-0.5 - 0.5 * far_end, -0.02), (-0.48 - far_end, 0.1 * (1 + tail))]
    whip = _turn(line, (-0.46, -0.06), lift)
    parts.append(_tube(whip, [0.06, 0.045 + 0.05 * slope, 0.025 + 0.05 * slope], coats["tail"]))
    head = np.array([0.55 + 0.16 * neck, -0.2 - 0.38 * neck]) + rng.normal(0, 0.04, 2)
    nod = rng.normal(0.2, 0.3)
    size = 0.1 + 0.04 * bulk
    ears = [
        (-0.02, -0.6 * size),
        (-0.06, -1.4 * size - 0.1 * ear),
        (-0.1, -1.5 * size - 0.18 * ear),
    ]
    ears = np.array(ears) + head
    parts.append(
        _tube(_turn(ears + (0.05, 0.01), head, nod), [0.04, 0.04, 0.01], coats["head"], 0.6)
    )
    parts.append(_tube([(-0.42, -0.01 - 0.04 * slope), (-0.1, 0.02), (0.2, 0.01), (0.38, -0.02)],
                       [fat, 0.95 * fat, 1.05 * fat, 0.95 * fat], coats["torso"]))  # fmt: skip
    parts.append(_tube([(0.36, -0.04), (0.46, -0.1 - 0.15 * neck), head],
                       [0.85 * fat, 0.6 * fat + 0.02, 0.09], kind.coat))  # fmt: skip
    snout = head + (0.1 + 0.16 * muzzle, 0.05)
    if horn > 0.6:
        spike = np.array([(0, -0.8 * size), (0.02, -0.2), (-0.06 + 0.2 * (horn - 0.6), -0.34)])
        parts.append(_tube(_turn(spike + head, head, nod), [0.03, 0.022, 0.005], kind.limb))
    face = _turn([head - (0.02, 0), head + (0.05, 0.02), snout], head, nod)
    parts.append(_tube(face, [size, 0.9 * size, 0.05], coats["head"]))
    nose = _turn([snout + (0.02, -0.02), snout + (0.035, -0.01)], head, nod)
    parts.append(_tube(nose, [0.03, 0.025], Coat((0.08, 0.07, 0.07), (0.08, 0.07, 0.07))))
    parts.append(_tube(_turn(ears, head, nod), [0.045, 0.05, 0.01], coats["head"], 0.85))
    parts += _eye(*_turn([head + (0.055, -0.3 * size)], head, nod)[0], 0.022)  # type: ignore[call-arg]
    legs(False)
    return parts


def _lizard(kind: Species, rng) -> list[Tube]:
    """A lizard seen from above; the body bends."""
    thick, head_size, tail, leg, taper, _, _, _ = kind.shape
    coats, limb = _coats(kind), kind.coat
    fat = 0.07 + 0.07 * thick
    bend = rng.normal(0, 0.12)
    x = np.array([0.34, 0.1, -0.14, -0.36])
    y = bend * np.sin(3 * x)
    body = np.column_stack([x, y])
    parts = []
    for at, side in ((0.24, -1), (0.24, 1), (-0.26, -1), (-0.26, 1)):
        hip = np.array([at, bend * np.sin(3 * at)])
        reach, swing = 0.1 + 0.14 * leg, rng.normal(0, 0.09)
        knee = hip + (swing + 0.03, side * (fat + 0.6 * reach))
        foot = knee + (rng.normal(0.04 if at > 0 else -0.06, 0.05), side * 0.5 * reach)
        parts.append(_tube([hip, knee, foot], [0.05, 0.035, 0.022], limb, 0.9))
        for toe in (-0.05, 0.0, 0.05):
            end = foot + (toe + 0.01, side * 0.045)
            parts.append(_tube([foot, end], [0.012, 0.007], kind.limb, 0.9))
    end, curl = 0.45 + 0.5 * tail, rng.normal(0, 0.35)
    steps = np.linspace(0, 1, 5)
    whip = np.column_stack(
        [-0.34 - end * steps, y[-1] + curl * end * steps**2 - 0.1 * bend * steps]
    )
    parts.append(_tube(whip, np.interp(steps, [0, 1], [0.75 * fat, 0.008 + 0.03 * taper]),
                       coats["tail"]))  # fmt: skip
    parts.append(_tube(body, [0.75 * fat, fat, 1.1 * fat, 0.75 * fat], coats["torso"]))
    size = 0.065 + 0.05 * head_size
    turn = rng.normal(0, 0.25)
    neck = body[0]
    face = _turn([neck - (0.02, 0), neck + (0.1, 0), neck + (0.13 + 1.2 * size, 0)], neck, turn)
    parts.append(_tube(face, [0.7 * fat, size, 0.4 * size], coats["head"]))
    for side in (-1, 1):
        eye = _turn([neck + (0.13, side * 0.75 * size)], neck, turn)[0]
        parts += _eye(*eye, 0.02)  # type: ignore[call-arg]
    return parts


def _beetle(kind: Species, rng) -> list[Tube]:
    """A beetle seen from above: two wing cases, a neck shield, a head with feelers."""
    wide, long, head_size, leg, feeler, _, jaw, _ = kind.shape
    coats, limb = _coats(kind), kind.limb
    fat, back = 0.2 + 0.12 * wide, 0.45 + 0.25 * long
    parts = []
    for at, lean in ((0.2, 0.16), (-0.02, -0.04), (-0.22, -0.2)):
        for side in (-1, 1):
            reach = 0.16 + 0.2 * leg
            knee = (at + 0.6 * lean + rng.normal(0, 0.03), side * (fat + 0.5 * reach))
            foot = (knee[0] + lean + rng.normal(0, 0.04), side * (fat + reach))
            parts.append(_tube([(at, 0), knee, foot], [0.035, 0.026, 0.014], limb, 0.85))
    size = 0.1 + 0.07 * head_size
    front = 0.42 + size
    for side in (-1, 1):
        tip = (front + 0.15 + 0.3 * feeler, side * (0.14 + 0.2 * feeler) + rng.normal(0, 0.05))
        mid = (front + 0.06 + 0.15 * feeler, side * 0.16)
        parts.append(_tube([(front, side * 0.05), mid, tip], [0.015, 0.012, 0.012], limb))
        if jaw > 0.5:
            hook = (front + 0.1 + 0.2 * (jaw - 0.5), side * 0.02)
            parts.append(_tube([(front, side * 0.05), (front + 0.08, side * 0.09), hook],
                               [0.03, 0.025, 0.008], limb))  # fmt: skip
    parts.append(_tube([(0.4, 0), (front, 0)], [1.1 * size, size], coats["head"]))
    for side in (-1, 1):
        parts += _eye(front, side * 0.8 * size, 0.028)
    shield = kind.coat if kind.marked != "head" else kind.mark
    parts.append(_tube([(0.3, -0.3 * fat), (0.32, 0), (0.3, 0.3 * fat)],
                       [0.4 * fat, 0.5 * fat, 0.4 * fat], shield, 0.95))  # fmt: skip
    opened = abs(rng.normal(0, 0.05))
    for side in (-1, 1):
        shut = [(0.22, side * 0.42 * fat), (-0.1, side * 0.52 * fat), (-back, side * 0.3 * fat)]
        case = _turn(shut, (0.25, 0), -side * opened)
        parts.append(_tube(case, [0.48 * fat, 0.56 * fat, 0.25 * fat], coats["torso"]))
    return parts
