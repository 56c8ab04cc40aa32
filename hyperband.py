"""Hyperband as W&B's engine has it: which of a sweep's running runs should end now.

An iteration is an epoch with a finite value of the metric. Runs are compared after certain epochs,
the bands; of those that came to a band the best 1/eta go on. It is looked at again and again, so a
run may end between two bands, when later runs do better at the band that it passed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MOST_BANDS = 100  # as many as the engine makes from min_iter


def bands(rule: Mapping[str, Any], epochs: int | None = None) -> list[int]:
    """The epochs after which runs are compared, of those up to `epochs` where it is given.

    From min_iter upwards (min_iter, min_iter * eta, ...), or from max_iter downwards, s of them,
    max_iter itself not among them; max_iter comes first where both are given.
    """
    eta, found = rule.get("eta", 3), []
    if "max_iter" in rule:
        band = rule["max_iter"]
        for _ in range(rule["s"]):
            band /= eta
            if band < 1:
                break
            found.append(int(band))
    else:
        band = rule["min_iter"]
        while len(found) < MOST_BANDS and math.isfinite(band):
            found.append(int(band))
            band = band * eta if band < 1e300 else math.inf
    return [band for band in sorted(set(found)) if epochs is None or band <= epochs]


def to_stop(
    rule: Mapping[str, Any],
    goal: str,
    histories: Mapping[str, Sequence[float]],
    running: Collection[str],
) -> set[str]:
    """Those of `running` that should end now.

    `histories`: the metric's value after each epoch of every run of the sweep, whatever became of
    the run: what a failed or a stopped run had at a band counts there for ever.
    """
    sign = -1 if goal == "maximize" else 1
    costs = {
        name: [sign * value for value in values if math.isfinite(value)]
        for name, values in histories.items()
    }
    longest = max(map(len, costs.values()), default=0)
    bars = {band: _bar(rule, band, costs.values()) for band in bands(rule, longest)}
    return {name for name in running if _fails(rule, bars, costs.get(name, ()))}


def _bar(rule: Mapping[str, Any], band: int, costs: Collection[Sequence[float]]) -> float:
    """The highest cost with which a run goes on beyond `band`."""
    reached = sorted(cost[band - 1] for cost in costs if len(cost) >= band)
    share = 1.0 / rule.get("eta", 3)  # in this order: 1 / 3 * 3 is 1, and decides
    return reached[int(share * len(reached))]


def _fails(rule: Mapping[str, Any], bars: Mapping[int, float], cost: Sequence[float]) -> bool:
    """Whether a run is above the bar of the last band that it came to."""
    passed = [band for band in bars if band <= len(cost)]
    if not passed:
        return False
    # The engine's default is strict, though W&B's manual says otherwise.
    value = cost[passed[-1] - 1] if rule.get("strict", True) is True else min(cost)
    return value > bars[passed[-1]]
