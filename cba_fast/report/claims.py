"""What the data of a report supports, and what it does not, in sentences."""

from dataclasses import dataclass

from ..wsol import BootstrapResult, Difference
from .collect import Collected, ReportRun

FEW_IMAGES = 30  # of a class: the share of right ones is then uncertain by 18 points and more
CLEAR_BIAS = 0.25  # percent points


@dataclass(frozen=True)
class Claim:
    """A statement about the runs that the data shows, or a question that it leaves open."""

    shown: bool
    text: str


def title(metric: str, contours: str | None, iou: float | None) -> str:
    """Return the name of a score in words."""
    if metric == "max_box_acc_v2":
        return "MaxBoxAccV2"
    if (metric, contours, iou) == ("box_acc", "largest", 0.5):
        return "MaxBoxAcc"
    return f"accuracy at IoU {iou:g}, {contours} contour{'s' if contours == 'all' else ''}"


def find_claims(collected: Collected) -> list[Claim]:
    """Return what can be said about the runs of a report."""
    claims = []
    for name, difference in collected.differences.items():
        if isinstance(difference, BootstrapResult):
            for metric in ("max_box_acc", "max_box_acc_v2"):
                found = difference.find(metric)
                claims.append(_compared(collected.runs[0].name, name, found))
        else:
            claims.append(
                Claim(False, f"{collected.runs[0].name} and {name} are not compared: {difference}")
            )
    for run in collected.runs:
        claims += _about(run, collected)
    return claims + _about_erf(collected)


def _about_erf(collected: Collected) -> list[Claim]:
    both = collected.erf_and_scores()
    if both is None:
        return []
    question = "Whether a larger effective receptive field goes with better localization"
    if both.found is None:
        return [Claim(False, f"{question}: {both.reason}.")]
    found = both.found
    r = f"r = {found.r:+.2f} over {found.count} runs"
    if found.low is None or found.high is None:
        return [Claim(False, f"{question}: {r} are too few for an interval.")]
    r += f", interval {found.low:+.2f} to {found.high:+.2f} with the runs as a sample of networks"
    if found.low <= 0 <= found.high:
        return [Claim(False, f"{question}: {r}, which may be 0.")]
    better = "higher" if found.r > 0 else "lower"
    return [
        Claim(
            True,
            f"A larger effective receptive field goes with a {better} MaxBoxAcc ({r}). That does "
            "not show that it is the cause.",
        )
    ]


def _compared(a: str, b: str, d: Difference) -> Claim:
    score = title(d.metric, d.contours, d.iou)
    if d.low <= 0 <= d.high:
        interval = f"{d.estimate:+.2f} points, interval {d.low:+.2f} to {d.high:+.2f}"
        return Claim(
            False,
            f"Whether {a} or {b} has the higher {score} is open: the difference {a} \u2212 {b} "
            f"({interval}) may be 0. That does not show that they are equal.",
        )
    better, worse = (a, b) if d.estimate > 0 else (b, a)
    low, high = sorted((abs(d.low), abs(d.high)))
    by = f"by {abs(d.estimate):.2f} points, interval {low:.2f} to {high:.2f}"
    return Claim(True, f"{better} has a higher {score} than {worse} on such images, {by}.")


def _about(run: ReportRun, collected: Collected) -> list[Claim]:
    score = run.intervals.find("max_box_acc")
    claims = [
        Claim(
            True,
            f"{run.name} reaches a MaxBoxAcc of {score.estimate:.2f} % (interval {score.low:.2f} "
            f"to {score.high:.2f}) if its threshold is chosen on the images of the score.",
        )
    ]
    if score.bias > CLEAR_BIAS:
        claims.append(
            Claim(
                False,
                f"How well {run.name} does with a threshold chosen on other images: choosing it "
                f"here adds about {score.bias:.2f} points.",
            )
        )
    if run.result.missing and not collected.config.missing_as_miss:
        claims.append(
            Claim(
                False,
                f"How well {run.name} does on the {len(run.result.missing)} images that it has no "
                "map of: if they are hard ones, its scores are too high.",
            )
        )
    labels = run.evaluator.boxes.labels
    if labels is not None:
        classes = run.evaluator.per_class(run.result)
        small = sum(c.num_images < FEW_IMAGES for c in classes)
        if small:
            claims.append(
                Claim(
                    False,
                    f"Which classes {run.name} localizes best: {small} of {len(classes)} classes "
                    f"have fewer than {FEW_IMAGES} images.",
                )
            )
    return claims
