"""Put the correlations of measured images into words, and into the rows of the forest plot."""

import numpy as np

from ..analysis.correlations import WITHIN, Question, Value
from ..analysis.plots import Bar
from ..data.textlines import counted
from ..wsol.map_quality import LEVEL
from .per_image import CONTROL
from .per_image_report import BLIND, ERF, QUALITY, TITLES, Findings

ALL = "within models"
# Below this number the answer warns: in 400 simulations each, 95 % intervals contained the true
# r = 0.5 in 88, 92, 91 and 94 % with 10, 20, 30 and 60 images.
FEW_IMAGES = 30


def answer_lines(found: Findings) -> list[str]:
    """Return sentences that say what the correlations show and what they do not."""
    c = found.correlations
    single = c.num_models == 1
    at = {"level": "model", "model": found.models[0].name} if single else {"level": WITHIN}
    where = "over the images" if single else "within models"
    lines = [
        f"{counted(c.num_images, 'image')}, {counted(c.num_models, 'model')}, {c.num_rows} rows. In"
        f" brackets: {100 * c.confidence:g} % intervals from {c.num_resamples} resamples of the"
        " images" + ("." if single else ", all models of an image kept together."),
        *_channel_line(found),
        *_simple_lines(found, at, where),
    ]
    if found.quality:
        lines += _given_lines(found, at)
    if not single:
        lines += [_sign_line(found), _between_line(found)]
    if c.num_images < FEW_IMAGES:
        lines.append(f"With fewer than {FEW_IMAGES} images such intervals are somewhat too narrow.")
    lines.append(
        "Read it as association over images of this data set: not as cause, and not as a"
        " statement on other models, trainings or data. IoU and map measures come from the same"
        " maps, the ERF size does not; that alone favours the maps."
    )
    return lines


def text_of(value: Value | None, sign: str = "+", percent: bool = False) -> str:
    """Return a statistic with its interval as text such as ``+0.12 [+0.05, +0.19]``.

    Args:
        value: the statistic; None gives "".
        sign: "+" to write the sign of positive numbers too.
        percent: multiply by 100.
    """
    if value is None:
        return ""
    if value.estimate is None:
        return "undefined"
    scale, form = (100, f"{sign}.1f") if percent else (1, f"{sign}.2f")
    text = f"{scale * value.estimate:{form}}"
    if value.low is None or value.high is None:
        return f"{text} [no interval]"
    return f"{text} [{scale * value.low:{form}}, {scale * value.high:{form}}]"


def _channel_line(found: Findings) -> list[str]:
    if "object_channels" not in found.quality:
        return []
    shares = []
    for name in ("object_channels", CONTROL):
        values = np.concatenate([m.columns[name] for m in found.models])
        values = values[np.isfinite(values)]
        shares.append(f"{100 * values.mean():.0f} %" if len(values) else "unknown")
    return [
        f"Channels on the object beyond chance: {shares[0]} on average; {shares[1]} for the box of"
        f" another image (what the usual places explain), {100 * LEVEL:g} % by chance alone."
    ]


def _simple_lines(found: Findings, at: dict, where: str) -> list[str]:
    lines = []
    for name in (ERF, *found.quality):
        r = found.correlations.find(xs=name, **at)
        if r.reason:
            lines.append(f"IoU with {TITLES[name]}, {where}: undefined ({r.reason}).")
        else:
            lines.append(
                f"IoU with {TITLES[name]}, {where}: Pearson {text_of(r.pearson)}, Spearman"
                f" {text_of(r.spearman)}, R2 {text_of(r.r2, '')}."
            )
    return lines


def _given_lines(found: Findings, at: dict) -> list[str]:
    c, quality = found.correlations, tuple(found.quality)
    erf, maps = c.find(xs=ERF, given=quality, **at), c.find(xs=quality, given=(ERF,), **at)
    names = ", ".join(TITLES[q] for q in quality)
    if erf.r2_by_chance is None or maps.r2_by_chance is None:
        return [f"Given each other: undefined ({erf.reason or maps.reason})."]
    contrast = next(x for x in c.contrasts if (x.level, x.model) == (at["level"], at.get("model")))
    difference = contrast.difference
    if not difference.excludes_zero:
        verdict = "these data do not tell which of the two explains more"
    elif difference.is_positive:
        verdict = "the feature maps explain more of the IoU than the ERF size does"
    else:
        verdict = "the ERF size explains more of the IoU than the feature maps do"
    kept = "shows no clear relation with the IoU"
    if erf.pearson is not None and erf.pearson.excludes_zero:
        kept = f"still goes with a {'higher' if erf.pearson.is_positive else 'lower'} IoU"
    return [
        f"Given the feature maps ({names}), the ERF size {kept}: partial r"
        f" {text_of(erf.pearson)}; it explains {text_of(erf.r2, '', True)} % of what they leave"
        f" (by chance {100 * erf.r2_by_chance:.1f} %).",
        f"Given the ERF size, the feature maps explain {text_of(maps.r2, '', True)} % of what it"
        f" leaves (by chance {100 * maps.r2_by_chance:.1f} %).",
        f"Difference, adjusted for the number of measures: {text_of(difference, '+', True)}"
        f" percentage points; {verdict}.",
        *_blind_lines(found, at),
    ]


def _blind_lines(found: Findings, at: dict) -> list[str]:
    """Say the same about the measures alone that do not use the boxes."""
    c = found.correlations
    if not set(BLIND) < set(found.quality):
        return []
    erf, maps = c.find(xs=ERF, given=BLIND, **at), c.find(xs=BLIND, given=(ERF,), **at)
    if erf.reason or maps.reason:
        return []
    return [
        f"With the measures alone that do not use the boxes ({TITLES[BLIND[0]]},"
        f" {TITLES[BLIND[1]]}): given them, the ERF size has a partial r of"
        f" {text_of(erf.pearson)}; given it, they explain {text_of(maps.r2, '', True)} %."
    ]


def _sign_line(found: Findings) -> str:
    """Say how many models have which trend, because opposite trends cancel within models."""
    text = f"One by one, the IoU clearly rises with the ERF size in {_signs(found, ())}"
    if found.quality:
        text += f"; given the feature maps it rises in {_signs(found, tuple(found.quality))}"
    return f"{text}."


def _signs(found: Findings, given: tuple[str, ...]) -> str:
    each = [found.correlations.find("model", ERF, given, m.name).pearson for m in found.models]
    clear = [v.is_positive for v in each if v is not None and v.excludes_zero]
    up = sum(clear)
    return f"{up} of {len(each)} models and falls in {len(clear) - up}"


def _between_line(found: Findings) -> str:
    c = found.correlations
    if c.num_models < 3:
        return f"Across models: {c.num_models} models allow no correlation of their means."
    rows = [b for b in c.between_models if b.x in (ERF, *found.quality)]
    if not rows:
        return "Across models: undefined (the models' means are equal)."
    parts = []
    for b in rows:
        spread = "" if b.low is None else f" [{b.low:+.2f}, {b.high:+.2f}]"
        parts.append(f"{TITLES[b.x]} {b.r:+.2f}{spread}, p = {b.p_value:.2g}")
    few = " With so few models, one of them can turn these figures." if c.num_models < 10 else ""
    return (
        f"Across the means of {c.num_models} models (intervals: the models as a sample), IoU with "
        + "; ".join(parts)
        + f".{few}"
    )


def forest_groups(found: Findings) -> tuple[dict[str, list[Bar]], list[str]]:
    """Return what `plot_forest` draws: Pearson's r for each model and within models.

    The pooled level is left out, because it mixes the others.

    Returns:
        One group of bars for each question about a single variable, and all labels, "within models"
        (or the only model) last.
    """
    c = found.correlations
    levels = [({"level": "model", "model": m.name}, m.name) for m in found.models]
    if c.num_models > 1:
        levels.append(({"level": WITHIN}, ALL))
    groups = {}
    for question in dict.fromkeys(r.question for r in c.relations if len(r.question.xs) == 1):
        bars = []
        for level, label in levels:
            r = c.find(xs=question.xs, given=question.given, **level).pearson
            if r is not None and r.estimate is not None:
                bars.append(Bar(label, r.estimate, r.low, r.high))
        groups[title_of(question)] = bars
    return groups, [label for _, label in levels]


def title_of(question: Question) -> str:
    """Return a question as text: ``ERF size | feature maps`` is "ERF size given feature maps"."""
    xs, given = _titles(question.xs), _titles(question.given)
    return xs + (f" | {given}" if given else "")


def _titles(names: tuple[str, ...]) -> str:
    """Return the titles of variables; several measures of feature maps get one common title."""
    maps = tuple(n for n in names if n in QUALITY)
    if len(maps) < 2:
        return ", ".join(TITLES[n] for n in names)
    both = "feature maps (no box)" if maps == BLIND else "feature maps"
    return ", ".join([both, *(TITLES[n] for n in names if n not in maps)])
