"""What the parameters did: on which axis each is drawn, and how much of the difference it made."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report_findings import GOING_ON, Entry, Findings, count, finite, word

# Runs, below which nothing is said: on a known function of three parameters (one matters much, one
# a little, one not at all; noise of a point) the trees named the first one in 60% of 40 searches
# with 4 random runs, in 82% with 8, in 93% with 10, in all with 15. PED-ANOVA, Optuna's other way,
# needed 50 (0.35 with 10).
ENOUGH = 10
TREES = 32
# Different words, up to which a key takes part: fANOVA goes through all combinations of a tree's.
MOST_CHOICES = 10
STEPS = 6  # different whole numbers, up to which each has its place, as batch sizes have


@dataclass(frozen=True)
class Scale:
    """How a key of the config is drawn: linear, log, or one place a value (category)."""

    key: str
    kind: str
    values: tuple  # of a category: in order, as text

    def place(self, value: Any) -> float | None:
        """Where a value stands, as a number that grows evenly along the axis."""
        if self.kind == "category":
            return float(self.values.index(word(value)))
        number = finite(value)
        if number is None:
            return None
        return math.log10(number) if self.kind == "log" else number


def scale(key: str, values: Sequence[Any], logarithmic: bool = False) -> Scale:
    """Logarithmic where it was searched so, or where the values lie more evenly that way."""
    numbers = [finite(value) for value in values]
    whole = all(isinstance(value, int) for value in values)
    if None in numbers or (whole and len(set(values)) <= STEPS):
        return Scale(key, "category", tuple(sorted({word(value) for value in values}, key=_human)))
    low, high = min(numbers), max(numbers)
    if low > 0 and (logarithmic or (high / low >= 10 and _evener_by_log(numbers))):
        return Scale(key, "log", ())
    return Scale(key, "linear", ())


def _evener_by_log(numbers: Sequence[float]) -> bool:
    def off_centre(values: Sequence[float]) -> float:
        low, high = min(values), max(values)
        return abs((statistics.median(values) - low) / (high - low) - 0.5)

    return off_centre([math.log(number) for number in numbers]) < off_centre(numbers)


def _human(text: str) -> tuple:
    try:
        return (0, float(text), "")
    except ValueError:
        return (1, 0.0, text)


def scales(findings: Findings) -> list[Scale]:
    """Of every key that was searched, over the runs that have a value."""
    counted = [one for one in findings.main if one.value is not None]
    return [
        scale(key, [one.run.config.get(key) for one in counted], key in findings.logarithmic)
        for key in findings.searched
    ]


def counted(findings: Findings) -> list[Entry]:
    """The runs by which the parameters are judged: those that ended with a value."""
    return [one for one in findings.ranked if one.run.state not in GOING_ON]


def told_of_counted(findings: Findings) -> str:
    """`30 runs (20 stopped early)`."""
    entries = counted(findings)
    early = sum(one.run.state != "finished" for one in entries)
    return count(len(entries), "run") + (f" ({early} stopped early)" if early else "")


def untold(findings: Findings) -> str:
    """Why `importance` is None though the runs are enough for it; "" where they are too few."""
    entries = counted(findings)
    if len(entries) < ENOUGH:
        return ""
    alike = len({one.value for one in entries}) < 2
    return "all have the same value" if alike else "fewer than two parameters can be judged"


def importance(findings: Findings) -> dict[str, float] | None:
    """How the effect that Optuna's fANOVA finds is divided between the keys, over the runs that
    ended with a value (1 in all, also where it is noise); None where they are too few to tell.
    """
    entries = counted(findings)
    if len(entries) < ENOUGH or len({one.value for one in entries}) < 2:
        return None
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    drawn, points = _space(findings, entries)
    if len(drawn) < 2:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=findings.goal)
    study.add_trials(
        optuna.trial.create_trial(params=point, distributions=drawn, value=one.value)
        for one, point in zip(entries, points, strict=True)
    )
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    found = get_param_importances(study, evaluator=evaluator)
    return found if all(map(math.isfinite, found.values())) else None


def left_out(findings: Findings) -> list[str]:
    """Keys with too many different words for fANOVA."""
    words = {
        one.key: {word(entry.run.config.get(one.key)) for entry in counted(findings)}
        for one in scales(findings)
        if one.kind == "category"
    }
    return [key for key, found in words.items() if len(found) > MOST_CHOICES]


def without(findings: Findings) -> str:
    keys = left_out(findings)
    return f" Left out, for too many different values: {', '.join(keys)}." if keys else ""


def _space(findings: Findings, entries: Sequence[Entry]) -> tuple[dict, list[dict]]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    drawn: dict[str, Any] = {}
    points: list[dict[str, Any]] = [{} for _ in entries]
    left = left_out(findings)
    for one in scales(findings):
        values = [entry.run.config.get(one.key) for entry in entries]
        if one.kind == "category":
            values = [word(value) for value in values]
        else:  # by its place on the axis: fANOVA itself takes every range as a linear one
            values = [one.place(value) for value in values]
        if len(set(values)) < 2 or one.key in left:
            continue
        if one.kind == "category":
            drawn[one.key] = CategoricalDistribution(sorted(set(values)))
        else:
            drawn[one.key] = FloatDistribution(min(values), max(values))
        for point, value in zip(points, values, strict=True):
            point[one.key] = value
    return drawn, points


def ticks(kind: str, low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two ends."""
    if kind == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [
                float(f"{s}e{d}") for d in decades for s in steps if low <= s * 10.0**d <= high
            ]
            if len(found) <= most:
                break
        return found[:: math.ceil(len(found) / most) or 1] or [low, high]
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next((s for s in (1, 2, 2.5, 5) if (high - low) / (s * step) <= most), 10)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]
