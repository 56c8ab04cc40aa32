"""A sweep's YAML file: what W&B would reject, or silently misread, before a night is wasted.

`check(path)` gives every problem that there is, as lines. Errors are what makes a sweep fail or
mean something else than it says; warnings are what one may want. Nothing here needs torch or wandb.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cli import Mistake, did_you_mean
from config import FIELDS, Config
from measures import METRICS, SUMMARY

KEYS = (
    "program", "project", "entity", "name", "description", "method", "metric", "parameters",
    "early_terminate", "run_cap", "command", "settings", "controller", "tags",
)  # fmt: skip
METHODS = ("bayes", "random", "grid")
MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens",
    "args_no_boolean_flags", "args_json", "args_json_file",
)  # fmt: skip
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
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")


@dataclass
class Findings:
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read(path: Path) -> dict[str, Any]:
    try:
        sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise Mistake(f"{path}{f', line {mark.line + 1}' if mark else ''}: no YAML") from error
    if not isinstance(sweep, dict):
        raise Mistake(f"{path}: lines of `key: value` are needed")
    return sweep


def check(sweep: dict[str, Any], folder: Path) -> Findings:
    """Problems of a sweep whose file is in `folder`."""
    found = Findings()
    for key in sweep:
        if key not in KEYS:
            found.errors.append(f"unknown key {key!r}{did_you_mean(str(key), KEYS)}")
    method = sweep.get("method")
    if method not in METHODS:
        found.errors.append(f"method={method!r} is not one of {', '.join(METHODS)}")
    _check_program(sweep, folder, found)
    _check_metric(sweep, found)
    _check_parameters(sweep, found)
    _check_command(sweep.get("command"), found)
    cap = sweep.get("run_cap")
    if cap is not None and (not _is_whole(cap) or cap < 1):
        found.errors.append(f"run_cap={cap!r} must be a whole number of 1 or more")
    if sweep.get("early_terminate") is not None:
        _check_hyperband(sweep, found)
    return found


def _check_program(sweep: dict[str, Any], folder: Path, found: Findings) -> None:
    program = sweep.get("program")
    if not isinstance(program, str):
        found.errors.append("program is missing: the script that a run starts, as train.py")
    elif not _is_file(Path(program)):
        found.errors.append(f"program={program[:80]}: there is no such file here")
        if _is_file(folder / program):
            found.errors[-1] += f"; the agent looks from where it is started, so go to {folder}"


def _check_metric(sweep: dict[str, Any], found: Findings) -> None:
    metric = sweep.get("metric")
    if metric is None:
        if sweep.get("method") == "bayes" or sweep.get("early_terminate"):
            found.errors.append("metric is missing: the search needs a name and a goal")
        return
    if not isinstance(metric, dict) or "name" not in metric:
        found.errors.append("metric needs `name: val/acc` and `goal: maximize`")
        return
    for key in metric:
        if key not in ("name", "goal", "impute", "impute_while_running", "target"):
            found.errors.append(f"metric: unknown key {key!r}")
        elif key.startswith("impute") and metric[key] not in ("latest", "best", "worst"):
            found.errors.append(f"metric {key}={metric[key]!r} must be latest, best or worst")
    name, known = metric["name"], (*METRICS, *SUMMARY)
    if name not in known:
        found.errors.append(f"metric {name!r} is logged by no run{did_you_mean(str(name), known)}")
    elif name in SUMMARY and sweep.get("early_terminate"):
        found.errors.append(f"metric {name!r} comes at a run's end, too late for early_terminate")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        found.errors.append(f"metric goal={goal!r} must be minimize or maximize")
    elif name.startswith(("train/", "val/")) and (goal == "minimize") != name.endswith("/loss"):
        found.warnings.append(f"metric {name} with goal {goal}: the worst run will win")
    if sweep.get("method") == "bayes" and "impute" not in metric:
        found.warnings.append(
            "metric has no impute: a run that fails or is killed counts as the worst ever seen "
            "(write `impute: latest`)"
        )


def _check_parameters(sweep: dict[str, Any], found: Findings) -> None:
    parameters = sweep.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        found.errors.append("parameters are missing: what to search over")
        return
    for name, spec in parameters.items():
        if name not in FIELDS:
            found.errors.append(f"unknown parameter {name!r}{did_you_mean(str(name), FIELDS)}")
        elif not isinstance(spec, dict):
            found.errors.append(f"{name}: write `value: {spec}`, or `min`, `max`, or `values`")
        elif "parameters" in spec:
            found.errors.append(f"{name}: nested parameters are not supported; Config is flat")
        else:
            problem = _problem_of(name, spec, sweep.get("method"))
            if problem:
                found.errors.append(f"{name}: {problem}")


def distribution(spec: dict[str, Any]) -> str:
    """What W&B takes a parameter for."""
    if "distribution" in spec:
        return spec["distribution"]
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if all(_is_whole(spec.get(end)) for end in ("min", "max")):
        return "int_uniform"
    return "uniform"


def _problem_of(name: str, spec: dict[str, Any], method: str | None) -> str | None:
    """The first thing that is wrong with one parameter."""
    for key, value in spec.items():
        if key not in SPEC_KEYS:
            return f"unknown key {key!r}{did_you_mean(str(key), SPEC_KEYS)}"
        if key in NUMBERS and not _is_number(value):
            hint = (
                f"; YAML reads it as text, write {float(value)!r}" if _looks_number(value) else ""
            )
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
    return _problem_of_bounds(name, spec, kind)


def _problem_of_values(name: str, spec: dict[str, Any], kind: str) -> str | None:
    values = [spec["value"]] if kind == "constant" else spec["values"]
    if not isinstance(values, list) or not values:
        return "values must be a list"
    for value in values:
        if FIELDS[name].type in (int, float) and _looks_number(value):
            return f"{value!r} is text for YAML; write {float(value)!r}"
        problem = _refused(name, value)
        if problem:
            return problem
    chances = spec.get("probabilities")
    if chances is not None:
        if not isinstance(chances, list) or len(chances) != len(values):
            return "probabilities must be as many as values"
        if not all(_is_number(p) and p >= 0 for p in chances) or abs(sum(chances) - 1) > 1e-6:
            return "probabilities must add up to 1"
    return None


def _problem_of_bounds(name: str, spec: dict[str, Any], kind: str) -> str | None:
    if FIELDS[name].type not in (int, float):
        return f"{kind} gives numbers, and this is no number; give values"
    if kind == "int_uniform" and FIELDS[name].type is float:
        low, high = float(spec["min"]), float(spec["max"])
        return f"whole bounds mean whole numbers only; write min: {low}, max: {high}"
    for key in ("q", "sigma", "a", "b"):
        if spec.get(key, 1) <= 0:
            return f"{key}={spec[key]} must be above 0"
    if "q" in spec and FIELDS[name].type is int and not _is_whole(spec["q"]):
        return f"q={spec['q']} gives fractions, and this must be a whole number"
    if "min" not in spec:
        return None  # no bounds: a run whose draw is out of range says so itself
    low, high = spec["min"], spec["max"]
    if low >= high:
        return f"min={low} must be below max={high}"
    if kind in OF_EXPONENTS:
        if high > math.log(1e300):
            return f"max={high} is an exponent of e; {kind}_values takes the bounds themselves"
        low, high = math.exp(low), math.exp(high)
    elif "log" in kind and low <= 0:
        return f"min={low} must be above 0 for {kind}"
    if FIELDS[name].type is int and not kind.startswith(("int", "q_")):
        return f"{kind} gives fractions, and this must be a whole number; use int_uniform"
    if "q" in spec:  # the draws are rounded to its multiples, the ends too
        low, high = (round(end / spec["q"]) * spec["q"] for end in (low, high))
    return _refused(name, low) or _refused(name, high)


def _refused(name: str, value: Any) -> str | None:
    """What Config says to this value alone."""
    try:
        Config(**{name: value})
    except Mistake as mistake:
        return str(mistake)
    return None


def _check_command(command: Any, found: Findings) -> None:
    if command is None:
        return
    if not isinstance(command, list) or not command:
        found.errors.append("command must be a list, one word a line")
        return
    for word in map(str, command):
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        if macro and macro[1] not in MACROS and not macro[1].startswith("envvar:"):
            found.errors.append(f"command: unknown {word}{did_you_mean(macro[1], MACROS)}")
    if "${program}" not in command:
        found.warnings.append("command has no ${program}: `program` is started by nothing")


def _check_hyperband(sweep: dict[str, Any], found: Findings) -> None:
    rule, before = sweep["early_terminate"], len(found.errors)
    if not isinstance(rule, dict) or rule.get("type") != "hyperband":
        found.errors.append("early_terminate needs `type: hyperband`")
        return
    for key, value in rule.items():
        if key not in HYPERBAND:
            found.errors.append(
                f"early_terminate: unknown {str(key)!r}{did_you_mean(str(key), HYPERBAND)}"
            )
        elif key in ("min_iter", "max_iter", "s") and (not _is_whole(value) or value < 1):
            found.errors.append(f"early_terminate: {key}={value!r} must be 1 or more, and whole")
        elif key == "eta" and (not _is_number(value) or value < 1.1):
            found.errors.append(f"early_terminate: eta={value!r} must be above 1, as 3")
        elif key == "strict" and not isinstance(value, bool):
            found.errors.append(f"early_terminate: strict={value!r} must be true or false")
    if len(found.errors) > before:
        return
    if "min_iter" not in rule and not {"max_iter", "s"} <= set(rule):
        found.errors.append("early_terminate needs min_iter, or max_iter and s")
        return
    epochs = most_epochs(sweep)
    if not [band for band in bands(rule, epochs) if band < epochs]:
        found.warnings.append(
            f"early_terminate: the first band is at epoch {bands(rule)[0]}, and no run has more "
            f"than {epochs}: nothing will be stopped"
        )


def bands(rule: dict[str, Any], epochs: int | None = None) -> list[int]:
    """The epochs at which hyperband compares, the first up to `epochs`; without it, the first.

    From min_iter upwards (min_iter, min_iter * eta, ...), or from max_iter downwards, s of them.
    """
    eta = rule.get("eta", 3)
    if "min_iter" in rule:
        first = rule["min_iter"]
        steps = range(int(math.log(max((epochs or first) / first, 1), eta) + 1e-9) + 1)
        found = sorted({int(first * eta**step) for step in steps})
    else:
        deepest = min(rule["s"], int(math.log(rule["max_iter"], eta)) + 1)
        steps = range(deepest, 0, -1)
        found = sorted({max(int(rule["max_iter"] / eta**step), 1) for step in steps})
    return found if epochs is None else [band for band in found if band <= epochs]


def most_epochs(sweep: dict[str, Any]) -> int:
    """The most epochs that a run of this sweep can have."""
    spec = sweep.get("parameters", {}).get("epochs", {})
    given = [spec.get("value"), spec.get("max"), *(spec.get("values") or [])]
    numbers = [value for value in given if _is_number(value)]
    if not numbers and isinstance(sweep.get("command"), list):
        words = " ".join(map(str, sweep["command"]))
        numbers = [int(number) for number in re.findall(r"--epochs=(\d+)", words)]
    return int(max(numbers)) if numbers else Config().epochs


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _looks_number(value: Any) -> bool:
    """Text that its writer took for a number, as 1e-3 is in YAML."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
