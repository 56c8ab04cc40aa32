"""What a sweep searches over: W&B's distributions as Optuna draws from them.

`Space` turns the parameters of a sweep's file into what Optuna draws from, and a draw into what a
run gets. What Optuna knows is drawn as it is, so that the study reads well; of the others the share
of draws below (the quantile) is drawn.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweep_parameters import OF_EXPONENTS, distribution

# Of a parameter without bounds: shares of its lowest and highest values that are never drawn. The
# Gaussian process likes corners, and at 0 a normal one is minus infinity; .001 is 3.1 sigma.
EDGE = 0.001
ALIKE = 0.01  # of a parameter's range: closer draws are about the same


@dataclass(frozen=True)
class Parameter:
    """One parameter: what is drawn, and what becomes of the draw."""

    distribution: BaseDistribution | None  # of the draw; None: a constant, nothing is drawn
    value: Callable[[Any], Any]  # of the run, from the draw
    snap: Callable[[Any], Any] = lambda draw: draw  # the draw as the study keeps it
    is_choice: bool = False  # two draws that lie close have nothing in common
    points: int | None = None  # in a grid; None: no end
    point: Callable[[int], Any] = lambda index: None  # the draw of a grid's index-th point


class Space:
    """The parameters of a sweep file that sweep_file.check has no errors about."""

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        self._parameters = {name: _parameter(spec) for name, spec in parameters.items()}
        self.distributions: dict[str, BaseDistribution] = {
            name: one.distribution
            for name, one in self._parameters.items()
            if one.distribution is not None
        }

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a run, constants included, in the order of the file."""
        return {name: one.value(drawn.get(name)) for name, one in self._parameters.items()}

    def snapped(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The draw that reads, in the study, as what the run gets where that can be."""
        return {name: self._parameters[name].snap(draw) for name, draw in drawn.items()}

    def at(self, shares: Sequence[float]) -> dict[str, Any]:
        """The draw that has, of each parameter, this share (0 to 1) of all draws below it."""
        pairs = zip(self.distributions.items(), shares, strict=True)
        return {name: _at(one, share) for (name, one), share in pairs}

    def alike(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """Whether two draws make about the same run."""
        for name, one in self.distributions.items():
            parameter = self._parameters[name]
            here, there = parameter.value(first[name]), parameter.value(second[name])
            if (type(here), here) == (type(there), there):
                continue
            if parameter.is_choice:
                return False
            if abs(_share(one, first[name]) - _share(one, second[name])) > ALIKE:
                return False
        return True

    @property
    def grid_size(self) -> int | None:
        """Points of the whole grid; None where it has no end."""
        points = [one.points for one in self._parameters.values()]
        return None if None in points else math.prod(points)

    def grid_point(self, number: int) -> dict[str, Any]:
        """The draw of the number-th point; the last parameter of the file turns fastest."""
        drawn = {}
        for name, one in reversed(self._parameters.items()):
            number, index = divmod(number, one.points)
            if one.distribution is not None:
                drawn[name] = one.point(index)
        return drawn


def _parameter(spec: Mapping[str, Any]) -> Parameter:
    kind = distribution(spec)
    if kind == "constant":
        return _constant(spec["value"])
    if kind.startswith("categorical"):
        return _choice(spec["values"], spec.get("probabilities"))
    if kind == "int_uniform":
        return _whole(spec["min"], spec["max"])
    finish = _rounder(spec["q"]) if "q" in spec else float
    if kind.endswith(("normal", "beta")):
        return _of_quantile(kind, spec, finish)
    low, high = _ends(kind, spec)
    return _between(low, high, "log" in kind, spec.get("q"), finish)


def _constant(value: Any) -> Parameter:
    return Parameter(None, lambda draw: value, points=1)


def _whole(low: int, high: int) -> Parameter:
    return Parameter(
        IntDistribution(low, high), int, points=high - low + 1, point=lambda index: low + index
    )


def _choice(values: Sequence[Any], chances: Sequence[float] | None) -> Parameter:
    """A list of values; a value that stands there twice is drawn twice as often."""
    different = list({(type(value) is bool, value): value for value in values}.values())
    if len(different) == 1:
        return _constant(different[0])
    if chances is None and len(different) == len(values):
        return Parameter(
            CategoricalDistribution(values),
            lambda draw: draw,
            is_choice=True,
            points=len(values),
            point=lambda index: values[index],
        )
    weights = chances or [1 / len(values)] * len(values)
    ends = list(accumulate(weights))
    last = max(index for index, weight in enumerate(weights) if weight > 0)

    def value(quantile: float) -> Any:
        return values[min(bisect.bisect_right(ends, quantile), last)]

    def middle(index: int) -> float:
        first = values.index(different[index])
        return ends[first] - weights[first] / 2

    points = None if chances else len(different)  # W&B has no grid over probabilities
    return Parameter(
        FloatDistribution(0.0, 1.0), value, is_choice=True, points=points, point=middle
    )


def _ends(kind: str, spec: Mapping[str, Any]) -> tuple[float, float]:
    low, high = float(spec["min"]), float(spec["max"])
    if kind.startswith("inv") and kind in OF_EXPONENTS:
        low, high = -high, -low  # log(1 / x) is between min and max
    return (_exp(low), _exp(high)) if kind in OF_EXPONENTS else (low, high)


def _between(
    low: float, high: float, log: bool, q: float | None, finish: Callable[[float], Any]
) -> Parameter:
    """A number between bounds; with `q`, rounded to its multiples, which may lie beyond them."""

    def inside(draw: float) -> float:
        return min(max(float(finish(draw)), low), high)

    drawn = FloatDistribution(low, high, log=log)
    if q is None:
        return Parameter(drawn, finish)
    first, last = round(low / q), round(high / q)
    return Parameter(
        drawn,
        finish,
        snap=inside,
        points=None if log else last - first + 1,
        point=lambda index: inside((first + index) * q),
    )


def _of_quantile(kind: str, spec: Mapping[str, Any], finish: Callable[[float], Any]) -> Parameter:
    """What Optuna has no distribution for: a share between 0 and 1, and its inverse."""
    if kind.endswith("beta"):
        from scipy.special import betaincinv

        def value(quantile: float) -> float:
            return betaincinv(spec["a"], spec["b"], quantile)
    else:
        normal = NormalDist(spec["mu"], spec["sigma"])

        def value(quantile: float) -> float:
            return _exp(normal.inv_cdf(quantile)) if "log" in kind else normal.inv_cdf(quantile)

    return Parameter(FloatDistribution(EDGE, 1 - EDGE), lambda draw: finish(value(draw)))


def _rounder(q: float) -> Callable[[float], int | float]:
    """To the next multiple of q: whole numbers where q is one, as W&B has it."""
    if isinstance(q, int):
        return lambda value: round(value / q) * q
    return lambda value: float(f"{round(value / q) * q:.12g}")  # 0.3, not 0.30000000000000004


def _exp(exponent: float) -> float:
    return math.exp(min(max(exponent, -700.0), 700.0))  # neither 0 nor infinite


def _at(one: BaseDistribution, share: float) -> Any:
    """The draw below which lies this share, 0 to 1, of all draws."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[min(int(share * len(one.choices)), len(one.choices) - 1)]
    if isinstance(one, IntDistribution):
        return min(one.low + int(share * (one.high - one.low + 1)), one.high)
    if one.log:
        low, high = math.log(one.low), math.log(one.high)
        return min(max(math.exp(low + share * (high - low)), one.low), one.high)
    return min(one.low + share * (one.high - one.low), one.high)


def _share(one: FloatDistribution | IntDistribution, draw: float) -> float:
    """Where a draw lies between the lowest, 0, and the highest, 1."""
    low, high = one.low, one.high
    if one.log:
        low, high, draw = math.log(low), math.log(high), math.log(draw)
    return (draw - low) / (high - low)
