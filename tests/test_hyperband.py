"""Hyperband: its bands and decisions by hand, and as W&B's engine made them.

tests/hyperband_decisions.json: python bench/search.py --record tests/hyperband_decisions.json
"""

import json
import math
from pathlib import Path

import pytest

from hyperband import bands, to_stop

RECORDED = json.loads((Path(__file__).parent / "hyperband_decisions.json").read_text())
NAN = math.nan


@pytest.mark.parametrize(
    ("rule", "epochs", "expected"),
    {
        "upwards": ({"min_iter": 3, "eta": 3}, 30, [3, 9, 27]),
        "eta is 3 unless told": ({"min_iter": 5}, 50, [5, 15, 45]),
        "the last epoch is one": ({"min_iter": 3, "eta": 3}, 27, [3, 9, 27]),
        "the one before it is not": ({"min_iter": 3, "eta": 3}, 26, [3, 9]),
        "none in reach": ({"min_iter": 3}, 2, []),
        "from the first": ({"min_iter": 1, "eta": 2}, 9, [1, 2, 4, 8]),
        "fractions are cut off": ({"min_iter": 2, "eta": 1.5}, 16, [2, 3, 4, 6, 10, 15]),
        "each once": ({"min_iter": 1, "eta": 1.2}, 4, [1, 2, 3, 4]),
        "downwards, without max_iter": ({"max_iter": 27, "s": 2, "eta": 3}, None, [3, 9]),
        "down to 1": ({"max_iter": 27, "s": 9, "eta": 3}, None, [1, 3, 9]),
        "never below 1": ({"max_iter": 20, "s": 3}, None, [2, 6]),
        "nothing is left": ({"max_iter": 2, "s": 3, "eta": 3}, None, []),
        "max_iter before min_iter": ({"max_iter": 18, "s": 1, "min_iter": 4}, None, [6]),
    }.values(),
)
def test_bands(rule, epochs, expected):
    assert bands(rule, epochs) == expected


def test_bands_upwards_have_no_end():
    assert bands({"min_iter": 3, "eta": 3})[:4] == [3, 9, 27, 81]
    assert bands({"min_iter": 3, "eta": 1e6})[:2] == [3, 3_000_000]


STRICT = {"min_iter": 3, "eta": 3, "strict": True}
LOOSE = {**STRICT, "strict": False}


def runs(*at_band, before=(0.0, 0.0), after=()):
    """Runs a, b, c, ... that have these values at epoch 3."""
    return {chr(97 + i): [*before, value, *after] for i, value in enumerate(at_band)}


@pytest.mark.parametrize(
    ("rule", "goal", "histories", "running", "expected"),
    {
        "alone: its own bar": (STRICT, "maximize", runs(0.1), "a", ""),
        "the better of two goes on": (STRICT, "maximize", runs(0.1, 0.2), "ab", "a"),
        # The bar is the value at place int(n / eta), counted from 0: of 3 runs the second best.
        "two of three go on": (STRICT, "maximize", runs(0.1, 0.2, 0.3), "abc", "a"),
        "two of five": (STRICT, "maximize", runs(0.1, 0.2, 0.3, 0.4, 0.5), "abcde", "abc"),
        "three of six": (STRICT, "maximize", runs(*"123456"), "abcdef", "abc"),
        "as good as the bar": (STRICT, "maximize", runs(0.2, 0.2), "ab", ""),
        "minimize": (STRICT, "minimize", runs(0.1, 0.2), "ab", "b"),
        "only those that run": (STRICT, "maximize", runs(0.1, 0.2), "b", ""),
        "before the band": (
            STRICT, "maximize", {**runs(0.5), "b": [0.0, 0.0]}, "ab", "",
        ),
        "beyond it, by what was there": (
            STRICT, "maximize", {**runs(0.5), "b": [0, 0, 0.4, 0.9]}, "ab", "b",
        ),
        "loose: by the best so far": (
            LOOSE, "maximize", {**runs(0.5), "b": [0, 0, 0.4, 0.9]}, "ab", "",
        ),
        "loose: an earlier best counts": (
            LOOSE, "maximize", {**runs(0.5), "b": [0.6, 0, 0.4]}, "ab", "",
        ),
        "strict unless told": (
            {"min_iter": 3, "eta": 3}, "maximize", {**runs(0.5), "b": [0, 0, 0.4, 0.9]}, "ab", "b",
        ),
        "at the second band the first is past": (
            STRICT, "maximize", {**runs(0.5), "b": [0, 0, 0.4, *[0] * 5, 0.9]}, "ab", "",
        ),
        "the second band has a bar of its own": (
            STRICT, "maximize",
            {"a": [0, 0, 0.1, *[0] * 5, 0.9], "b": [0, 0, 0.7, *[0] * 5, 0.8]}, "ab", "b",
        ),
        "gaps are no iterations": (
            STRICT, "maximize", {**runs(0.5), "b": [NAN, 0, 0.4, math.inf]}, "ab", "",
        ),
        "after the gap": (
            STRICT, "maximize", {**runs(0.5), "b": [NAN, 0, 0, 0.4]}, "ab", "b",
        ),
        "nothing but gaps": (STRICT, "maximize", {**runs(0.5), "b": [NAN] * 5}, "ab", ""),
        "no history at all": (STRICT, "maximize", {"a": []}, "ab", ""),
    }.values(),
)  # fmt: skip
def test_to_stop(rule, goal, histories, running, expected):
    histories = {name: [float(value) for value in seen] for name, seen in histories.items()}
    assert to_stop(rule, goal, histories, set(running)) == set(expected)


def test_a_run_may_end_between_bands_when_a_later_one_is_better():
    first = {"a": [0.0, 0.0, 0.3, 0.35]}
    assert to_stop(STRICT, "maximize", first, ["a"]) == set()
    assert to_stop(STRICT, "maximize", {**first, **{"b": [0, 0, 0.4]}}, "ab") == {"a"}


def test_it_leaves_its_arguments_alone():
    rule, histories = dict(STRICT), runs(0.1, 0.2)
    to_stop(rule, "maximize", histories, "ab")
    assert (rule, histories) == (STRICT, runs(0.1, 0.2))


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_decisions_of_the_engine(number):
    case = RECORDED[number]
    histories = {
        name: [NAN if value is None else value for value in values]
        for name, values in case["histories"].items()
    }
    stopped = to_stop(case["rule"], case["goal"], histories, case["running"])
    assert sorted(stopped) == case["stopped"]


def test_the_recorded_decisions_are_of_all_kinds():
    assert len(RECORDED) > 50
    assert sum(bool(case["stopped"]) for case in RECORDED) > 30
    assert {case["goal"] for case in RECORDED} == {"maximize", "minimize"}
    assert {case["rule"].get("strict") for case in RECORDED} == {True, False, None}
    assert any(None in values for case in RECORDED for values in case["histories"].values())
