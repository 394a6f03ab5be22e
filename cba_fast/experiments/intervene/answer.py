"""Says in sentences what follows from changed networks, and what does not."""

from collections.abc import Sequence

from ...data.textlines import counted
from ..per_image_answer import FEW_IMAGES
from .findings import AREA, BOX, METRICS, SIZE, TITLES, TOP1, UNITS, Effect, Findings, Row

KINDS = {
    "outer": "outer taps cut",
    "random": "random taps of the same energy",
    "inner": "inner taps of the same energy",
    "blur": "feature maps blurred",
    "drop": "channels dropped",
}
SAME_ENERGY, OF_FEATURES = ("random", "inner"), ("blur", "drop")


def answer_lines(found: Findings) -> list[str]:
    """Return what the measurements show, what follows from them and what does not."""
    changed = found.rows[1:]
    base = [
        f"{TITLES[m]} {_number(m, e.value)} {UNITS[m]}" for m, e in found.untouched.effects.items()
    ]
    lines = [
        f"{counted(found.num_images, 'image')}, {found.num_erf} of them for the ERF;"
        f" {counted(len(changed), 'changed network')}. In brackets: {100 * found.confidence:g} %"
        f" paired intervals of the difference to the untouched network, from {found.num_resamples}"
        " resamples of the images.",
        f"Untouched: {', '.join(base)}. One centred box for all images: MaxBoxAcc"
        f" {found.centred_box:.1f} %.",
    ]
    for kind in KINDS:
        rows = found.of_kind(kind)
        if rows:
            lines.append(_of_kind(kind, rows))
    for kind in KINDS:
        rows = [r for r in found.of_kind(kind) if r.against]
        if rows and kind in SAME_ENERGY:
            told = ", ".join(f"{TITLES[m]} {_tally(m, [r.against for r in rows])}" for m in _SHOWN)
            lines.append(f"Outer taps cut against {KINDS[kind]}: {told}.")
    if found.num_erf < FEW_IMAGES:
        lines.append(
            f"The intervals of the ERF come from {found.num_erf} images; with fewer than"
            f" {FEW_IMAGES} they are somewhat too narrow."
        )
    return [*lines, *(f"What follows: {f}" for f in _follows(found)), _not_follows(found)]


_SHOWN = (SIZE, AREA, BOX)


def _of_kind(kind: str, rows: list[Row]) -> str:
    told = ", ".join(f"{TITLES[m]} {_tally(m, [r.effects for r in rows])}" for m in _SHOWN)
    last = rows[-1]
    effects = ", ".join(
        f"{TITLES[m]} {text_of(m, last.effects[m])}" for m in METRICS if m in last.effects
    )
    return f"{KINDS[kind].capitalize()}: {told}. At {last.setting.dose}: {effects}."


def _tally(metric: str, each: Sequence[dict[str, Effect]]) -> str:
    """Say for how many networks the interval lies below 0, above 0, or around it."""
    signs = [effects[metric].sign for effects in each]
    words = ("smaller", "larger") if metric in (SIZE, AREA) else ("lower", "higher")
    parts = [
        f"{word} at {signs.count(sign)}" for word, sign in zip(words, (-1, 1)) if sign in signs
    ]
    if 0 in signs:
        parts.append(f"undecided at {signs.count(0)}")
    return f"{' and '.join(parts)} of {len(signs)}"


def _erf_sign(effects: dict[str, Effect]) -> int:
    """-1 where ERF size or area is smaller and neither is larger, 1 the other way, else 0."""
    signs = {effects[SIZE].sign, effects[AREA].sign}
    return 0 if {-1, 1} <= signs else sum(signs)


def _follows(found: Findings) -> list[str]:
    localized = found.untouched.effects[BOX].value
    if localized is not None and localized <= found.centred_box:
        return [
            "nothing on localization, because the untouched network localizes no better than one"
            " centred box for all images, which looks at none."
        ]
    outer = found.of_kind("outer")
    smaller = [r for r in outer if _erf_sign(r.effects) < 0]
    lines = []
    if not outer:
        lines.append("no outer taps were cut, so nothing on what a smaller ERF does.")
    elif not smaller:
        lines.append("no cut makes the ERF smaller beyond chance, so nothing on what it does.")
    else:
        lines += _of_smaller(found, smaller)
    for kind in SAME_ENERGY:
        rows = found.of_kind(kind)
        wider = [r for r in rows if _erf_sign(r.effects) > 0 and r.effects[BOX].sign < 0]
        if _is_more_than_a_lone_one(wider, rows):
            lines.append(
                f"with {KINDS[kind]} ({_doses(wider)}) the ERF is larger and MaxBoxAcc lower than"
                " untouched: a larger ERF alone does not help localization."
            )
    for kind in OF_FEATURES:
        rows = found.of_kind(kind)
        moved = [r for r in rows if r.effects[SIZE].sign == 0 and r.effects[BOX].sign]
        if _is_more_than_a_lone_one(moved, rows):
            lines.append(
                f"with {KINDS[kind]} ({_doses(moved)}) MaxBoxAcc changes while the interval of the"
                " ERF size contains 0: the ERF size alone does not decide localization."
            )
    return lines


def _is_more_than_a_lone_one(some: list[Row], rows: list[Row]) -> bool:
    """Whether there is one, and not one of many: that may be the one in twenty by chance."""
    return len(some) > 1 or len(some) == len(rows) == 1


def _of_smaller(found: Findings, smaller: list[Row]) -> list[str]:
    """Say what MaxBoxAcc does at the doses where the outer cut makes the ERF smaller."""
    lower, same, higher = ([r for r in smaller if r.effects[BOX].sign == s] for s in (-1, 0, 1))
    lines = []
    if higher:
        lines.append(
            f"at {_doses(higher)} the ERF is smaller and MaxBoxAcc higher than untouched: there a"
            " smaller ERF does not harm localization."
        )
    if same:
        most = max(-low for r in same if (low := r.effects[BOX].low) is not None)
        lines.append(
            f"at {_doses(same)} the ERF is smaller and no change of MaxBoxAcc is shown: the"
            f" intervals allow a fall of up to {most:.1f} points."
        )
    if not lower:
        return lines
    kinds = [k for k in SAME_ENERGY if found.of_kind(k)]
    exceeds = [r for r in lower if kinds and all(_exceeds(_at(found, k, r)) for k in kinds)]
    rest = [r for r in lower if r not in exceeds]
    if exceeds:
        controls = " and with ".join(KINDS[k] for k in kinds)
        lines.append(
            f"at {_doses(exceeds)} ERF and MaxBoxAcc are smaller than untouched and than with"
            f" {controls}: the fall goes with the outer taps and is more than the lost energy"
            " explains."
        )
    if rest and kinds:
        lines.append(
            f"at {_doses(rest)} ERF and MaxBoxAcc are smaller than untouched, but MaxBoxAcc is not"
            " shown to be lower than with each control of the same energy: the damage to the"
            " kernels can explain the fall, a smaller ERF is not needed for it."
        )
    elif rest:
        lines.append(
            f"at {_doses(rest)} ERF and MaxBoxAcc are smaller than untouched; without a control of"
            " the same energy (random, inner) damage and ERF cannot be told apart."
        )
    return lines


def _at(found: Findings, kind: str, row: Row) -> Row:
    return next(r for r in found.of_kind(kind) if r.setting.radius == row.setting.radius)


def _exceeds(control: Row) -> bool:
    """Whether the outer cut has a smaller ERF and a lower MaxBoxAcc than this control of it."""
    return _erf_sign(control.against) < 0 and control.against[BOX].sign < 0


def _not_follows(found: Findings) -> str:
    changed = found.rows[1:]
    lines = [
        "how a network that is trained with smaller kernels localizes (these were not trained"
        " again)",
    ]
    outer = found.of_kind("outer")
    if outer:
        low, high = min(r.change for r in outer), max(r.change for r in outer)
        also = f"that only the ERF was changed: the cuts also change the feature maps by {low:.0%}"
        also += f" to {high:.0%} of their energy"
        fallen = [r for r in outer if TOP1 in r.effects and r.effects[TOP1].sign < 0]
        if fallen:
            also += f" and lower top-1 at {_doses(fallen)}"
        lines.append(also)
    lines.append("anything on other models or data")
    chance = (1 - found.confidence) * 100
    return (
        f"What does not follow: {'; '.join(lines)}. The {counted(len(changed), 'network')} are"
        f" compared without correction: by chance alone {chance:g} % of such intervals exclude 0."
    )


def _doses(rows: Sequence[Row]) -> str:
    doses = [r.setting.dose for r in rows]
    if all(d.startswith("r = ") for d in doses):
        return f"r = {', '.join(d.removeprefix('r = ') for d in doses)}"
    return ", ".join(doses)


def text_of(metric: str, effect: Effect) -> str:
    """Return a difference with its interval as text such as ``-3.5 [-6.0, -1.0]``."""
    if effect.difference is None:
        return "undefined"
    return f"{_number(metric, effect.difference, '+')}{_interval(metric, effect)}"


def cell_of(metric: str, effect: Effect, plain: bool) -> str:
    """Return a figure and, unless `plain`, the interval of its difference, for a table."""
    return _number(metric, effect.value) + ("" if plain else _interval(metric, effect))


def _interval(metric: str, effect: Effect) -> str:
    if effect.low is None:
        return ""
    return f" [{_number(metric, effect.low, '+')}, {_number(metric, effect.high, '+')}]"


def _number(metric: str, number: float | None, sign: str = "") -> str:
    if number is None:
        return "undefined"
    digits = 0 if metric == SIZE else 1
    return f"{round(number, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: never -0
