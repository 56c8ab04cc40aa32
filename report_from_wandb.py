"""Runs that W&B has, read through `wandb.Api` as if they lay in folders: for reports.

    runs, studies = collect_from_wandb("ENTITY/PROJECT/SWEEP_ID")

A sweep's runs, or a project's training runs; a question a run. What only a folder has (the
predictions of every image, the pictures, the versions) is not there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli import Mistake
from collection import PastRun, PastStudy, with_defaults
from config import FIELDS
from measures import METRICS
from suggestion import ADDED
from sweep_parameters import distribution
from wandb_api import MOST_ROWS, asked, login, online

if TYPE_CHECKING:
    import wandb

AGAIN = "try again"
# W&B's states, and which of ours each may be: the run's own summary says which, else the first.
# A resumed run still has the summary of its last end, so one that goes on is not asked.
STATES = {
    "finished": ("finished", "stopped"),
    "failed": ("failed", "preempted", "interrupted"),
    "killed": ("killed", "stopped"),
    "crashed": ("killed",),  # W&B has heard nothing for minutes: kill -9, or the machine is gone
    "preempting": ("preempted",),
    "preempted": ("preempted",),
}


@dataclass(frozen=True)
class Place:
    """A project at W&B, or a sweep in it."""

    entity: str
    project: str
    sweep: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.entity, self.project, self.sweep)))

    @property
    def filters(self) -> dict[str, str]:
        """Which of the project's runs: those of the sweep, or all that trained."""
        return {"sweep": self.sweep} if self.sweep else {"jobType": "train"}


@dataclass(frozen=True)
class Found:
    """What a place has."""

    place: Place
    address: str  # of the project, in the app
    runs: list[PastRun]
    study: PastStudy | None = None
    searched: tuple[str, ...] = ()  # parameters that the sweep draws

    @property
    def studies(self) -> list[PastStudy]:
        return [self.study] if self.study else []

    @property
    def name(self) -> str:
        return self.study.name if self.study else self.place.project


def place_of(path: str) -> Place:
    """`ENTITY/PROJECT` or `ENTITY/PROJECT/SWEEP_ID`; `sweeps/` as in an address may be there."""
    parts = re.fullmatch(r"([\w.-]+)/([^/]+)(?:/(?:sweeps/)?([\w.-]+))?", path)
    if not parts:
        raise Mistake(f"--wandb {path!r} must be ENTITY/PROJECT or ENTITY/PROJECT/SWEEP_ID")
    return Place(*parts.groups())


def collect_from_wandb(path: str) -> tuple[list[PastRun], list[PastStudy]]:
    """The runs of a project or of a sweep, and the sweep as a study."""
    place = place_of(path)
    with online():
        found = find(login(AGAIN), place)
    return found.runs, found.studies


def find(api: "wandb.Api", place: Place) -> Found:
    with asked(api, AGAIN):
        address = api.project(place.project, place.entity).url.removesuffix("/workspace")
        study, searched = read_sweep(api, place) if place.sweep else (None, ())
        runs = [read_run(run) for run in _listed(api, place)]
    if not runs:
        which = "this sweep has no run" if place.sweep else "no run of train.py is in this project"
        raise Mistake(f"{place}: {which} yet, there is nothing to report")
    return Found(place, address, runs, study, searched)


def _listed(api: "wandb.Api", place: Place) -> Iterable["wandb.apis.public.Run"]:
    from tqdm import tqdm

    project = f"{place.entity}/{place.project}"
    runs = api.runs(project, filters=place.filters, lazy=False)
    try:
        count = len(runs)
    except ValueError:  # the client's own for an empty answer
        raise Mistake(f"{project}: W&B has no such project, or this login may not see it") from None
    return tqdm(runs, "runs", total=count, leave=False, disable=None)


def read_sweep(api: "wandb.Api", place: Place) -> tuple[PastStudy, tuple[str, ...]]:
    """A sweep as a study, and the parameters that it draws."""
    from wandb.errors import CommError

    try:
        sweep = api.sweep(str(place))
    except CommError as error:
        if not isinstance(error.exc, ValueError):  # the client's own for an empty answer
            raise
        raise Mistake(f"{place}: W&B has no such sweep, or this login may not see it") from None
    config = sweep.config
    drawn = {key: distribution(spec) for key, spec in (config.get("parameters") or {}).items()}
    metric = config.get("metric") or {}
    study = PastStudy(
        sweep.name,
        None,
        metric.get("name", "val/acc"),
        metric.get("goal", "minimize") if metric else "maximize",
        frozenset(key for key, kind in drawn.items() if "log" in kind),
        {},
    )
    return study, tuple(key for key, kind in drawn.items() if kind != "constant")


def read_run(run: "wandb.apis.public.Run") -> PastRun:
    summary = plain_summary(run.summary_metrics)
    config = {k: typed(k, value) for k, value in run.config.items() if not k.startswith("_")}
    about = {key: config.pop(key) for key in ADDED if key in config}
    start = {"time": run.created_at, "commit": run.commit}
    about["starts"] = [{key: value for key, value in start.items() if value}]
    state = state_of(run.state, summary.get("state"))
    return PastRun(run.id, None, state, with_defaults(config), read_rows(run), summary, about)


def typed(key: str, value: Any) -> Any:
    """W&B's client writes 1.0 as 1."""
    is_fraction = key in FIELDS and FIELDS[key].type is float
    return float(value) if is_fraction and type(value) is int else value


def state_of(told: str, own: Any) -> str:
    """Ours for W&B's; `own` is what the run said of its last end."""
    ours = STATES.get(told, (told,))
    return own if own in ours else ours[0]


def plain_summary(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers and words: not the client's own keys, not what pictures and tables leave."""
    told = {key: value for key, value in values.items() if not key.startswith("_")}
    numbers = {key: number(value) for key, value in told.items()}
    words = {key: value for key, value in told.items() if isinstance(value, str)}
    return {**words, **{key: value for key, value in numbers.items() if value is not None}}


def read_rows(run: "wandb.apis.public.Run") -> list[dict[str, float]]:
    """A row an epoch with the metrics that were logged; in an epoch that stands twice, because the
    run was killed and went on, the later one counts.
    """
    summary = run.summary_metrics
    keys = [key for key in METRICS if key in summary]
    if "epoch" not in keys:
        return []
    rows: dict[float, dict[str, float]] = {}
    _take(run, keys, rows)
    if len(rows) < (number(summary["epoch"]) or 0):  # W&B tells only of rows that have every key
        for key in keys[1:]:
            _take(run, ["epoch", key], rows)
    return [rows[epoch] for epoch in sorted(rows)]


def _take(run: "wandb.apis.public.Run", keys: list[str], rows: dict[float, dict]) -> None:
    for told in run.history(keys=keys, samples=MOST_ROWS, pandas=False):
        row = {key: number(told.get(key)) for key in keys}
        row = {key: value for key, value in row.items() if value is not None}
        if "epoch" in row:
            rows.setdefault(row["epoch"], {}).update(row)


def number(value: Any) -> float | None:
    """A number of W&B's, which writes NaN and infinity as text."""
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
