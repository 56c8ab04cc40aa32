"""The parameters of a sweep's file: what W&B draws from each, and what Config says to the draws.

Nothing here needs torch or wandb.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from cli import Mistake, did_you_mean
from config import FIELDS, Config

# Distribution -> its keys, all of which we want to see; W&B would put 1 for a missing q or sigma.
DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
NUMBERS = ("min", "max", "mu", "sigma", "q", "a", "b")
SPEC_KEYS = ("value", "values", "probabilities", "distribution", *NUMBERS)
OF_EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")  # min and max are exponents of e
LARGEST_EXPONENT = math.log(1e300)
NARROWEST = 1e6  # a or b of beta: beyond, all draws are one value (and Python's dice may not end)
DRAWS = 1000
CORNERS = 256  # combinations that are tried, 0.2 ms each


def distribution(spec: Mapping[str, Any]) -> str:
    """What W&B takes a parameter for."""
    if "distribution" in spec:
        return spec["distribution"]
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if all(is_whole(spec.get(end)) for end in ("min", "max")):
        return "int_uniform"
    return "uniform"


def problem_of(name: str, spec: Mapping[str, Any], method: str | None) -> str | None:
    """The first thing that is wrong with one parameter."""
    for key, value in spec.items():
        if key not in SPEC_KEYS:
            return f"unknown key {key!r}{did_you_mean(str(key), SPEC_KEYS)}"
        if key in NUMBERS and not is_number(value):
            hint = f"; YAML reads it as text, write {float(value)!r}" if looks_number(value) else ""
            return f"{key}={value!r} must be a number{hint}"
    kind = distribution(spec)
    if not isinstance(kind, str) or kind not in DISTRIBUTIONS:
        return f"unknown distribution {kind!r}{did_you_mean(str(kind), DISTRIBUTIONS)}"
    extra = [key for key in spec if key not in (*DISTRIBUTIONS[kind], "distribution")]
    if extra:
        return f"{kind} has no {extra[0]}; W&B refuses the two together"
    missing = [key for key in DISTRIBUTIONS[kind] if key not in spec]
    if missing:
        return f"{kind} needs {' and '.join(missing)}"
    if method == "grid" and kind not in ("constant", "categorical", "int_uniform", "q_uniform"):
        return f"a grid has no end over {kind}; give values"
    if kind == "constant" or kind.startswith("categorical"):
        return _problem_of_values(name, spec, kind)
    return _problem_of_numbers(name, spec, kind)


def _problem_of_values(name: str, spec: Mapping[str, Any], kind: str) -> str | None:
    values = [spec["value"]] if kind == "constant" else spec["values"]
    if not isinstance(values, list) or not values:
        return "values must be a list"
    for value in values:
        if FIELDS[name].type in (int, float) and looks_number(value):
            return f"{value!r} is text for YAML; write {float(value)!r}"
        problem = refusal({name: value})
        if problem:
            return problem
    chances = spec.get("probabilities")
    if chances is not None:
        if not isinstance(chances, list) or len(chances) != len(values):
            return "probabilities must be as many as values"
        if not all(is_number(p) and p >= 0 for p in chances) or abs(sum(chances) - 1) > 1e-6:
            return "probabilities must add up to 1"
    return None


def _problem_of_numbers(name: str, spec: Mapping[str, Any], kind: str) -> str | None:
    if FIELDS[name].type not in (int, float):
        return f"{kind} gives numbers, and this is no number; give values"
    for key in ("q", "sigma", "a", "b"):
        if spec.get(key, 1) <= 0:
            return f"{key}={spec[key]} must be above 0"
    if "min" in spec and (problem := _problem_of_bounds(name, spec, kind)):
        return problem
    if FIELDS[name].type is int and not kind.startswith(("int", "q_")):
        instead = "int_uniform" if "min" in spec else f"q_{kind} with q: 1"
        return f"{kind} gives fractions, and this must be a whole number; use {instead}"
    if FIELDS[name].type is int and not is_whole(spec.get("q", 1)):
        return f"q={spec['q']} gives fractions, and this must be a whole number"
    if max(spec.get("a", 1), spec.get("b", 1)) > NARROWEST:
        return f"a and b of {kind} must not be above {NARROWEST:g}; give a value"
    if "min" not in spec:
        problem = refusal({name: median(spec)})
        return f"half of the draws of {kind} fail: {problem}" if problem else None
    low, high = ends(spec)
    return refusal({name: low}) or refusal({name: high})


def _problem_of_bounds(name: str, spec: Mapping[str, Any], kind: str) -> str | None:
    low, high = spec["min"], spec["max"]
    points = f"write min: {float(low)}, max: {float(high)}"
    if kind == "int_uniform" and FIELDS[name].type is float:
        return f"whole bounds mean whole numbers only; {points}"
    if kind == "int_uniform" and not (is_whole(low) and is_whole(high)):
        return f"min={low}, max={high}: int_uniform needs both without a point"
    if "distribution" not in spec and is_whole(low) != is_whole(high):
        return f"W&B refuses min={low} with max={high}, one a fraction, one whole; {points}"
    if low >= high:
        return f"min={low} must be below max={high}"
    if kind in OF_EXPONENTS:
        if max(abs(low), abs(high)) > LARGEST_EXPONENT:
            return f"min={low}, max={high} are exponents of e; {kind}_values takes the values"
    elif "log" in kind and low <= 0:
        return f"min={low} must be above 0 for {kind}"
    return None


def warning_of(name: str, spec: Mapping[str, Any]) -> str | None:
    """What may be meant otherwise in a parameter without problems."""
    kind = distribution(spec)
    if kind in OF_EXPONENTS:
        low, high = ends(spec)
        return (
            f"{kind} takes min and max for exponents of e, so draws are {low:.4g} to {high:.4g}; "
            f"{kind}_values takes the values themselves"
        )
    if kind.startswith(("constant", "categorical")) or "min" in spec:
        return None
    # No bounds: the tail may leave Config's range.
    refused = [why for value in draws(spec) if (why := refusal({name: value}))]
    if not refused:
        return None
    share = max(round(100 * len(refused) / DRAWS), 1)
    return f"about {share}% of the draws of {kind} fail their run, as: {refused[0]}"


def ends(spec: Mapping[str, Any]) -> tuple[float, float]:
    """The lowest and the highest draw between bounds."""
    kind, low, high = distribution(spec), spec["min"], spec["max"]
    if kind == "inv_log_uniform":
        low, high = math.exp(-high), math.exp(-low)
    elif kind in OF_EXPONENTS:
        low, high = math.exp(low), math.exp(high)
    return _rounded(low, spec), _rounded(high, spec)


def draws(spec: Mapping[str, Any]) -> list[float]:
    """Some from a distribution without bounds, the same ones each time."""
    dice = random.Random(0)
    kind = distribution(spec).removeprefix("q_")
    draw = {"normal": dice.gauss, "log_normal": dice.lognormvariate, "beta": dice.betavariate}[kind]
    one, two = (spec[key] for key in DISTRIBUTIONS[kind])
    return [_rounded(_or_inf(draw, one, two), spec) for _ in range(DRAWS)]


def median(spec: Mapping[str, Any]) -> float:
    return sorted(draws(spec))[DRAWS // 2]


def _rounded(value: float, spec: Mapping[str, Any]) -> float:
    """W&B rounds to multiples of q, the bounds, too."""
    return _or_inf(lambda q: round(value / q) * q, spec["q"]) if "q" in spec else value


def _or_inf(compute: Callable[..., float], *numbers: float) -> float:
    """What Python has no number for is infinite here, and so out of every range."""
    try:
        return compute(*numbers)
    except OverflowError:
        return math.inf


def choices(spec: Mapping[str, Any]) -> list[Any]:
    """What stands for a parameter in combinations: its values, its ends, or its median."""
    kind = distribution(spec)
    if kind == "constant":
        return [spec["value"]]
    if kind.startswith("categorical"):
        return spec["values"]
    return [*ends(spec)] if "min" in spec else [median(spec)]


def refused_combination(chosen: Mapping[str, list[Any]]) -> str | None:
    """The first combination that Config refuses, without what does not matter to it, and why."""
    for corner in _corners(chosen):
        why = refusal(corner)
        if why:
            for name in chosen:
                rest = {key: value for key, value in corner.items() if key != name}
                corner = rest if refusal(rest) == why else corner
            return f"{', '.join(f'{key}={value}' for key, value in corner.items())}: {why}"
    return None


def _corners(chosen: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations; where they are too many some, the same ones each time."""
    if math.prod(map(len, chosen.values())) <= CORNERS:
        every = itertools.product(*chosen.values())
        return [dict(zip(chosen, values, strict=True)) for values in every]
    dice = random.Random(0)
    return [{name: dice.choice(some) for name, some in chosen.items()} for _ in range(CORNERS)]


def refusal(values: Mapping[str, Any]) -> str | None:
    """What Config says to these values, the others being the defaults."""
    try:
        Config(**values)
    except Mistake as mistake:
        return str(mistake)
    return None


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def looks_number(value: Any) -> bool:
    """Text that its writer took for a number, as 1e-3 is in YAML."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
