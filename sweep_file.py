"""A sweep's YAML file: what W&B would reject, or silently misread, before a night is wasted.

`check(path)` gives every problem that there is, as lines. Errors are what makes a sweep fail or
mean something else than it says; warnings are what one may want. Nothing here needs torch or wandb.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Any

import yaml

import config
from cli import Mistake, Parser, did_you_mean
from hyperband import bands
from measures import METRICS, SUMMARY
from sweep_parameters import (
    choices,
    is_number,
    is_whole,
    problem_of,
    refused_combination,
    warning_of,
)
from tracking import check_project

# The schema that W&B's server checks a sweep by: sweeps/config/schema.json of its search engine
# (PyPI `sweeps` 0.3.0). What is not in it, as tags or settings, the server calls malformed.
KEYS = (
    "apiVersion", "kind", "controller", "description", "program", "entity", "project", "method",
    "command", "name", "run_cap", "metric", "scheduler", "early_terminate", "parameters",
)  # fmt: skip
TEXTS = ("apiVersion", "kind", "description", "program", "entity", "project", "name")
NOT_OURS = {  # the rest of the schema's keys
    "job": "W&B Launch, and `wandb agent` starts `program`",
    "image_uri": "W&B Launch, and `wandb agent` starts `program`",
    "metrics": "`method: custom`; give one `metric`",
}
METHODS = ("bayes", "random", "grid")
METRIC_KEYS = {  # key -> its values; impute_while_running has the text "false" as its default
    "name": None,
    "goal": ("minimize", "maximize"),
    "target": None,
    "impute": ("latest", "best", "worst"),
    "impute_while_running": ("latest", "best", "worst", "false"),
}
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
# What the agent of wandb 0.31.0 replaces (wandb_agent.py, sdk/launch/sweeps/utils.py) ...
MACROS = (
    "env", "interpreter", "program", "args", "args_no_equals", "args_no_hyphens",
    "args_no_boolean_flags", "args_json", "args_json_file", "args_append_hydra",
    "args_override_hydra",
)  # fmt: skip
ENVIRONMENT = r"envvar:([A-Z0-9_]*)"
READ_BY_US = ("args", "args_no_equals")  # ... and which of the args_... train.py understands
NO_BOXES = "cifar10"


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
    for key, value in sweep.items():
        if key in NOT_OURS:
            found.errors.append(f"{key} is for {NOT_OURS[key]}")
        elif key not in KEYS:
            found.errors.append(f"unknown key {key!r}{did_you_mean(str(key), KEYS)}")
        elif value is None:
            found.errors.append(f"{key} has no value: give it one, or remove the line")
        elif key == "kind" and value != "sweep":
            found.errors.append(f"kind={value!r} must be 'sweep'")
        elif key in TEXTS and not isinstance(value, str):
            found.errors.append(f"{key}={value!r} must be a text, as {key}: 'x'")
        elif key == "project":
            try:
                check_project(value, key)
            except Mistake as mistake:
                found.errors.append(str(mistake))
        elif key == "controller" and value not in ({"type": "cloud"}, {"type": "local"}):
            found.errors.append("controller must be `type: cloud` or `type: local`")
    method = sweep.get("method")
    if method not in METHODS:
        found.errors.append(f"method={method!r} is not one of {', '.join(METHODS)}")
    _check_program(sweep, folder, found)
    _check_metric(sweep, found)
    _check_parameters(sweep, found)
    _check_command(sweep.get("command"), found)
    cap = sweep.get("run_cap")
    if cap is not None and (not is_whole(cap) or cap < 1):
        found.errors.append(f"run_cap={cap!r} must be a whole number of 1 or more")
    if sweep.get("scheduler") is not None:
        _check_scheduler(sweep, found)
    if sweep.get("early_terminate") is not None:
        _check_hyperband(sweep, found)
    if not found.errors:
        _check_together(sweep, found)
    return found


def _check_program(sweep: dict[str, Any], folder: Path, found: Findings) -> None:
    program = sweep.get("program")
    if program is None:
        found.errors.append("program is missing: the script that a run starts, as train.py")
    elif isinstance(program, str) and not _is_file(Path(program)):
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
    for key, value in metric.items():
        if key not in METRIC_KEYS:
            found.errors.append(f"metric: unknown key {key!r}{did_you_mean(str(key), METRIC_KEYS)}")
        elif key == "target" and not is_number(value):
            found.errors.append(f"metric target={value!r} must be a number")
        elif METRIC_KEYS[key] and value not in METRIC_KEYS[key]:
            *others, last = METRIC_KEYS[key]
            listed = f"{', '.join(others)} or {last}"
            found.errors.append(f"metric {key}={value!r} must be {listed}")
    name, known = metric["name"], (*METRICS, *SUMMARY)
    if name not in known:
        found.errors.append(f"metric {name!r} is logged by no run{did_you_mean(str(name), known)}")
    elif name in SUMMARY and sweep.get("early_terminate"):
        found.errors.append(f"metric {name!r} comes at a run's end, too late for early_terminate")
    goal = metric.get("goal", "minimize")
    scored = goal in METRIC_KEYS["goal"] and str(name).startswith(("train/", "val/"))
    if scored and (goal == "minimize") != name.endswith("/loss"):
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
        if name not in config.FIELDS:
            found.errors.append(
                f"unknown parameter {name!r}{did_you_mean(str(name), config.FIELDS)}"
            )
        elif not isinstance(spec, dict):
            found.errors.append(f"{name}: write `value: {spec}`, or `min`, `max`, or `values`")
        elif "parameters" in spec:
            found.errors.append(f"{name}: nested parameters are not supported; Config is flat")
        elif problem := problem_of(name, spec, sweep.get("method")):
            found.errors.append(f"{name}: {problem}")
        elif warning := warning_of(name, spec):
            found.warnings.append(f"{name}: {warning}")


def _check_together(sweep: dict[str, Any], found: Findings) -> None:
    """What no key shows alone, in a sweep without other errors."""
    chosen = {name: choices(spec) for name, spec in sweep["parameters"].items()}
    for name, value in of_command(sweep.get("command")).items():
        chosen.setdefault(name, [value])
    problem = refused_combination(chosen)
    if problem:
        found.errors.append(f"together: {problem}")
    name = (sweep.get("metric") or {}).get("name", "")
    if name.startswith("val/cam_") and NO_BOXES in chosen.get("dataset", []):
        found.errors.append(f"metric {name!r} needs boxes, and dataset={NO_BOXES} has none")


def _check_command(command: Any, found: Findings) -> None:
    if command is None:
        return
    if not isinstance(command, list) or not command:
        found.errors.append("command must be a list, one word a line")
        return
    for word in map(str, command):
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        if not macro or re.fullmatch(ENVIRONMENT, macro[1]):
            continue
        if macro[1] not in MACROS:
            found.errors.append(f"command: unknown {word}{did_you_mean(macro[1], MACROS)}")
        elif macro[1].startswith("args") and macro[1] not in READ_BY_US:
            found.warnings.append(f"command: train.py cannot read {word}; write ${{args}}")
    if "${program}" not in command:
        found.warnings.append("command has no ${program}: `program` is started by nothing")
    try:
        of_command(command)
        _check_flags(command)
    except Mistake as mistake:
        found.errors.append(f"command: {mistake}")


def of_command(command: Any) -> dict[str, Any]:
    """What the command's own words give to a run: a recipe, and flags over it."""
    if not isinstance(command, list):
        return {}
    options, _ = _parser().parse_known_args(_plain_words(command))
    # ${envvar:NAME} is another thing on each machine: what it gives is not known here.
    known = options.config and "${" not in str(options.config)
    recipe = config.read_recipe(options.config) if known else {}
    flags = {key: value for key, value in config.given(options).items() if "${" not in value}
    for key, value in flags.items():
        flags[key] = getattr(config.Config(**{key: value}), key)
    return {**recipe, **flags}


def output_dir_of(command: Any) -> dict[str, Any]:
    """Where a command with words of this machine's environment puts the runs; empty where it does
    not say. They are filled in as W&B's agent does it.
    """
    if not isinstance(command, list):
        return {}
    words = [str(word) for word in command]
    filled = [
        re.sub(rf"\$\{{{ENVIRONMENT}\}}", lambda one: environ.get(one[1], one[1]), word)
        for word in words
    ]
    given = of_command(filled) if filled != words else {}
    return {key: value for key, value in given.items() if key == "output_dir"}


def _check_flags(command: list[Any]) -> None:
    """Mistake for what stands behind the program and train.py would not know."""
    words, program = [str(word) for word in command], "${program}"
    behind = words[words.index(program) + 1 :] if program in words else []
    parser = _parser()
    _, unknown = parser.parse_known_args(_plain_words(behind))
    unknown = [word for word in unknown if not word.startswith("${envvar:")]
    if unknown:
        parser.error(f"unrecognized arguments: {unknown[0]}")


def _parser() -> Parser:
    parser = Parser(prog="python train.py", add_help=False)
    config.add_arguments(parser)
    return parser


def _plain_words(command: Iterable[Any]) -> list[str]:
    """Without the macros that stand for a whole word."""
    return [str(word) for word in command if not re.fullmatch(r"\$\{\w+\}", str(word))]


def _check_scheduler(sweep: dict[str, Any], found: Findings) -> None:
    """W&B's search on one's own machine, by `wandb sweep-scheduler`."""
    scheduler = sweep["scheduler"]
    if not isinstance(scheduler, dict) or scheduler.get("engine") != "wandb":
        found.errors.append(f"scheduler needs `engine: wandb`, as method is {sweep.get('method')}")
    if sweep.get("early_terminate") is not None:
        found.errors.append("scheduler: W&B refuses it with early_terminate")


def _check_hyperband(sweep: dict[str, Any], found: Findings) -> None:
    rule = sweep["early_terminate"]
    if not isinstance(rule, dict) or rule.get("type") != "hyperband":
        found.errors.append("early_terminate needs `type: hyperband`")
        return
    for key, value in rule.items():
        if key not in HYPERBAND:
            found.errors.append(
                f"early_terminate: unknown {str(key)!r}{did_you_mean(str(key), HYPERBAND)}"
            )
        elif key in ("min_iter", "max_iter", "s") and (not is_whole(value) or value < 1):
            found.errors.append(f"early_terminate: {key}={value!r} must be 1 or more, and whole")
        elif key == "eta" and (not is_number(value) or value < 1.1):
            found.errors.append(f"early_terminate: eta={value!r} must be 1.1 or more, as 3")
        elif key == "strict" and not isinstance(value, bool):
            found.errors.append(f"early_terminate: strict={value!r} must be true or false")
    # Where both are given, W&B's engine takes max_iter, and fails without s.
    if not {"max_iter", "s"} <= set(rule) and ("max_iter" in rule or "min_iter" not in rule):
        found.errors.append("early_terminate needs min_iter, or max_iter and s")
    if found.errors:
        return
    epochs = most_epochs(sweep)
    if not bands(rule):
        found.errors.append(f"early_terminate: max_iter={rule['max_iter']} must not be below eta")
    elif not [band for band in bands(rule, epochs) if band < epochs]:
        found.warnings.append(
            f"early_terminate: the first band is at epoch {bands(rule)[0]}, and no run has more "
            f"than {epochs}: nothing will be stopped"
        )


def most_epochs(sweep: dict[str, Any]) -> int:
    """The most epochs that a run of this sweep can have (the median where there is no bound)."""
    spec = sweep.get("parameters", {}).get("epochs")
    if spec:
        return int(max(choices(spec)))
    return of_command(sweep.get("command")).get("epochs", config.Config().epochs)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False
