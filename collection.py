"""Runs that were made before, read from their folders: for reports and comparisons.

`collect` takes any mix of run folders, folders of runs and studies. Nothing is refused for being
unfinished: a run that failed, that still goes on or that has no metric is one with fewer numbers.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cli import Mistake
from config import Config, to_dict
from run_folder import is_in_use, read_arrays, read_config, read_json, read_summary

HISTORY = "history.csv"


@dataclass(frozen=True)
class PastRun:
    """What a run has left. `folder` is None for one that was read from W&B."""

    run_id: str
    folder: Path | None
    state: str  # as summary.json has it, or the study of a killed one; running; or killed
    config: dict[str, Any]
    rows: list[dict[str, float]]  # of the history, by epoch; a missing or empty number is not there
    summary: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # about.json

    def column(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs and finite values of one metric."""
        pairs = [(row["epoch"], row[key]) for row in self.rows if key in row and "epoch" in row]
        pairs = [(int(epoch), value) for epoch, value in pairs if math.isfinite(epoch + value)]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def best(self, key: str = "val/acc", goal: str = "maximize") -> tuple[int, float] | None:
        """Epoch and value, None where the metric was never logged."""
        epochs, values = replace(self, rows=at_largest(self.rows)).column(key)
        if not values:
            return None
        value = best(values, goal)
        return epochs[values.index(value)], value

    @cached_property
    def predictions(self) -> dict[str, np.ndarray] | None:
        """predictions.npz; None where there is none."""
        if self.folder is None or not (self.folder / "predictions.npz").is_file():
            return None
        return self._arrays()

    def _arrays(self, *names: str) -> dict[str, np.ndarray]:
        return read_arrays(self.folder / "predictions.npz", *names)

    @cached_property
    def fingerprint(self) -> str | None:
        """Of the split: two runs with the same one had the same images to train and validate."""
        known = self.about.get("split_fingerprint") or self.config.get("split_fingerprint")
        if known is None and self.folder and (self.folder / "predictions.npz").is_file():
            return str(self._arrays("fingerprint")["fingerprint"])
        return known

    def class_name(self, label: int) -> str:
        names = self.about.get("classes") or ()
        return names[label] if label < len(names) else f"class {label}"

    def picture(self, name: str) -> Path | None:
        """A file of figures/, None where there is none."""
        path = self.folder / "figures" / name if self.folder else None
        return path if path and path.is_file() else None


@dataclass(frozen=True)
class PastStudy:
    """What a study searched for, and what other seeds gave its best trials."""

    name: str
    folder: Path | None  # None for a sweep that was read from W&B
    metric: str
    goal: str
    logarithmic: frozenset[str]  # parameters that were drawn by their logarithm
    confirmed: dict[str, Any]  # confirm.json


def read_studies(paths: Iterable[Path]) -> list[PastStudy]:
    """Those of these places that are studies."""
    return [read_study(path) for path in paths if is_study(path)]


def is_study(path: Path) -> bool:
    return (path / "study.journal").is_file()


def read_study(folder: Path) -> PastStudy:
    from sweep_file import read
    from sweep_parameters import distribution

    sweep = read(folder / "sweep.yaml")
    metric, parameters = sweep["metric"], sweep.get("parameters") or {}
    return PastStudy(
        folder.resolve().name,
        folder,
        metric["name"],
        metric.get("goal", "minimize"),
        frozenset(key for key, spec in parameters.items() if "log" in distribution(spec)),
        read_json(folder / "confirm.json"),
    )


def collect(paths: Iterable[Path]) -> list[PastRun]:
    """All runs in these places, each once; those of a folder in the order of their names. A study
    knows more of a run than its folder does.
    """
    runs: dict[Any, PastRun] = {}
    for path in paths:
        if not path.exists():
            raise Mistake(f"{path}: there is no such folder")
        by_study = is_study(path)
        found = trials_of(path) if by_study else [read_run(one) for one in folders_of(path)]
        if not found:
            raise Mistake(f"{path}: no run, no folder of runs and no study with a trial")
        for run in found:
            key = run.folder or run.run_id
            if by_study or key not in runs:
                runs[key] = run
    return list(runs.values())


def folders_of(path: Path) -> list[Path]:
    """The run folders that a path stands for."""
    if is_run(path):
        return [path.resolve()]
    children = sorted(path.iterdir()) if path.is_dir() else []
    return [child.resolve() for child in children if is_run(child)]


def trials_of(path: Path) -> list[PastRun]:
    """A study's runs; of one whose folder is not here, what the study has of it."""
    from study import ENDS
    from study_folder import load

    found, study = [], load(path)
    for one in study.standings():
        run, state = one.job.run.resolve(), "killed" if one.state == "waiting" else one.state
        config = with_defaults({**study.by_command, **one.job.parameters})
        summary = {} if one.value is None else {study.metric: one.value, "epochs": one.epochs}
        lost = PastRun(one.job.run_id, None, state, config, [], summary)
        past = read_run(run) if is_run(run) else lost
        # A run that was killed could not say how it ended; the study knows.
        knows = one.state in (*ENDS, "running") and past.state not in ENDS
        found.append(replace(past, state=state) if knows else past)
    return found


def is_run(path: Path) -> bool:
    return path.is_dir() and (path / "config.yaml").is_file()


def read_run(folder: Path) -> PastRun:
    summary = read_summary(folder)
    state = summary.get("state") or ("running" if is_in_use(folder) else "killed")
    config = with_defaults(read_config(folder / "config.yaml"))
    about = read_json(folder / "about.json")
    return PastRun(folder.name, folder, state, config, read_history(folder), summary, about)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with the fields that are younger than the run, as it had them in effect."""
    return {**to_dict(Config()), **config} if config else config


def read_history(run: Path) -> list[dict[str, float]]:
    """The epochs so far."""
    try:
        file = open(run / HISTORY, newline="", encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        with file:
            rows = csv.DictReader(file)
            return [{key: float(value) for key, value in row.items() if value} for row in rows]
    except (TypeError, ValueError, csv.Error) as error:
        raise Mistake(f"{run / HISTORY}: every cell must be a number ({error})") from error


def at_largest(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The epochs of which the best is chosen, as best.pt is: all, unless the images grew."""
    most = max((row.get("pixels", 0) for row in rows), default=0)
    return [row for row in rows if row.get("pixels", 0) == most]


def best(values: Sequence[float], goal: str) -> float | None:
    """The best of the finite ones, as W&B's engine judges a run."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if goal == "maximize" else min(finite)
