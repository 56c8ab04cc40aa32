"""What a report knows about runs: pure functions over what the runs have left.

`Findings.of(runs)` puts the runs in order, sets those apart that had other images, and names the
best one.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from collection import PastRun, PastStudy, at_largest
from resolution import FULL

ACCURACY = "val/acc"
SHARES = ("val/acc", "val/top5", "train/acc", "best_val_acc")  # metrics that are counts of images
FAILED = ("failed",)  # such a run is shown, but does not win
GOING_ON = ("running", "pending")
# Keys of a config that say where and how, not what: never in the leaderboard ...
SILENT = ("data_dir", "output_dir", "resume", "mistakes", "split_fingerprint", "parameters")
# ... and those that no one searches over.
NOT_SEARCHED = ("seed", "split_seed", "workers", "device")
SPLIT = ("dataset", "split", "val_fraction", "split_seed")  # decide which images validate


@dataclass(frozen=True)
class Entry:
    """A run in a report."""

    key: str  # in the page; run ids may stand twice
    name: str
    run: PastRun
    value: float | None  # the metric at its best
    epoch: int | None  # of it
    group: int  # of the data it had; 0 is the one that the charts show

    @property
    def ranked(self) -> bool:
        return self.value is not None and self.run.state not in FAILED

    @cached_property
    def row(self) -> dict[str, float]:
        """The history at its best epoch."""
        rows = (row for row in self.run.rows if row.get("epoch") == self.epoch)
        return next(rows, {} if self.epoch or self.value is None else self.run.summary)

    @property
    def when(self) -> str:
        """Of what `at_best` tells."""
        return "at the end" if self.epoch is None else f"at epoch {self.epoch}"

    def at_best(self, key: str) -> float | None:
        return finite(self.row.get(key))

    @property
    def pixels(self) -> int | None:
        """Side of the images that were measured; None where the run does not say."""
        told = self.row.get("pixels") or self.run.about.get("full_pixels")
        if not told and not self.grew:
            told = self.run.config.get("image_size")
        return int(told) if told else None

    @property
    def grew(self) -> bool:
        """Whether its images were to grow."""
        return self.run.config.get("resolution_schedule", FULL) != FULL

    @property
    def last(self) -> float | None:
        """The accuracy that is published: that of the last epoch."""
        return finite(self.run.rows[-1].get(ACCURACY)) if self.run.rows else None

    @property
    def epochs(self) -> int:
        return len(self.run.rows) or int(finite(self.run.summary.get("epochs")) or 0)

    @property
    def candidates(self) -> int:
        """The epochs of which the best was chosen."""
        return len(at_largest(self.run.rows)) or self.epochs

    @property
    def seconds(self) -> float | None:
        values = self.run.column("time/epoch_s")[1]
        return sum(values) if values else None

    @property
    def images_per_s(self) -> float | None:
        values = self.run.column("time/images_per_s")[1]
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Data:
    """What runs must share to be compared: the images that they trained and validated on."""

    dataset: str
    fingerprint: str | None
    split: tuple[str, ...] = ()  # what the config says, where the fingerprint is not known

    def __str__(self) -> str:
        return f"{self.dataset}, split {self.fingerprint or 'unknown'}"


@dataclass(frozen=True)
class Findings:
    entries: list[Entry]  # best first, those without a rank last; by group, where there are more
    groups: list[Data]
    metric: str
    goal: str
    studies: list[PastStudy]

    @classmethod
    def of(cls, runs: Sequence[PastRun], studies: Sequence[PastStudy] = ()) -> "Findings":
        metric, goal = aim(studies)
        names = names_of(runs)
        data, places = group(runs)
        entries = []
        for number, run in enumerate(runs):
            epoch, value = reached(run, metric, goal)
            entries.append(Entry(str(number), names[number], run, value, epoch, places[number]))
        sizes = Counter(one.group for one in entries if one.ranked)
        order = sorted(range(len(data)), key=lambda i: -sizes[i])
        entries = [dataclasses.replace(one, group=order.index(one.group)) for one in entries]
        ordered = [data[i] for i in order]
        return cls(in_order(entries, goal), ordered, metric, goal, list(studies))

    @cached_property
    def main(self) -> list[Entry]:
        """Those that can be compared with each other, best first."""
        return [one for one in self.entries if one.group == 0]

    @cached_property
    def ranked(self) -> list[Entry]:
        return [one for one in self.main if one.ranked]

    @property
    def best(self) -> Entry | None:
        return self.ranked[0] if self.ranked else None

    @cached_property
    def differing(self) -> list[str]:
        """Keys of the config by which the runs differ."""
        return differing([one.run.config for one in self.entries])

    @cached_property
    def searched(self) -> list[str]:
        """Keys of the config that may have made the difference."""
        keys = differing([one.run.config for one in self.main if one.value is not None])
        return [key for key in keys if key not in NOT_SEARCHED]

    @cached_property
    def sizes(self) -> Counter[int]:
        """How many of those with a place were measured at which size, the largest first; 0 where it
        is not known.
        """
        return Counter(sorted((one.pixels or 0 for one in self.ranked), reverse=True))

    @property
    def logarithmic(self) -> frozenset[str]:
        return frozenset().union(*(study.logarithmic for study in self.studies))

    def shade(self, entry: Entry) -> float:
        """0 for the worst run to 1 for the best."""
        if not entry.ranked or entry.group:
            return 0.0
        others = len(self.ranked) - 1
        return 1 - self._ranks[entry.key] / others if others else 0.5

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {one.key: rank for rank, one in enumerate(self.ranked)}

    @cached_property
    def most_rows(self) -> int:
        """Epochs of the longest run that can be compared."""
        return max(len(one.run.rows) for one in self.main)


def aim(studies: Sequence[PastStudy]) -> tuple[str, str]:
    """Metric and goal: those of the studies, where they agree."""
    told = {(known_as(study.metric), study.goal) for study in studies}
    return told.pop() if len(told) == 1 else (ACCURACY, "maximize")


def known_as(metric: str | None) -> str | None:
    """`best_val_acc` is the accuracy of the best epoch, as this page tells it anyhow."""
    return ACCURACY if metric == "best_val_acc" else metric


def reached(run: PastRun, metric: str, goal: str) -> tuple[int | None, float | None]:
    """The best epoch and its value; the summary's value where no epoch has the metric."""
    if told := run.best(metric, goal):
        return told
    keys = ("best_val_acc", metric) if metric == ACCURACY else (metric,)
    values = (finite(run.summary.get(key)) for key in keys)
    return None, next((value for value in values if value is not None), None)


def finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def in_order(entries: Iterable[Entry], goal: str) -> list[Entry]:
    sign = -1 if goal == "maximize" else 1

    def key(one: Entry) -> tuple[int, bool, float]:
        value = math.inf if one.value is None else sign * one.value
        return one.group, not one.ranked, value

    return sorted(entries, key=key)


def names_of(runs: Sequence[PastRun]) -> list[str]:
    """The runs' ids; with their folders where an id stands twice."""
    ids = Counter(run.run_id for run in runs)
    names, seen = [], Counter()
    for run in runs:
        twice = ids[run.run_id] > 1 and run.folder
        name = f"{run.folder.parent.name}/{run.run_id}" if twice else run.run_id
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def group(runs: Sequence[PastRun]) -> tuple[list[Data], list[int]]:
    """The different data, and which of them each run had. A run that ended too early
    to know its split has that of the others with the same keys, where it is a single one.
    """
    known: dict[tuple, set[Data]] = {}
    for run in runs:
        if run.fingerprint:
            known.setdefault(_split(run), set()).add(Data(_dataset(run), run.fingerprint))
    found = []
    for run in runs:
        alike = known.get(_split(run), set())
        if run.fingerprint:
            found.append(Data(_dataset(run), run.fingerprint))
        elif len(alike) == 1:
            found.append(next(iter(alike)))
        else:
            found.append(Data(_dataset(run), None, _split(run)))
    different = list(dict.fromkeys(found))
    return different, [different.index(data) for data in found]


def _dataset(run: PastRun) -> str:
    return str(run.config.get("dataset", "unknown data"))


def _split(run: PastRun) -> tuple[str, ...]:
    return tuple(str(run.config.get(key)) for key in SPLIT)


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(str(key) for config in configs for key in config)
    told = [key for key in keys if key not in SILENT and not key.startswith("_")]
    return [key for key in told if len({repr(config.get(key)) for config in configs}) > 1]


def word(value: Any) -> str:
    """A value of a config, for people."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def shown(metric: str, value: float | None, digits: int = 1) -> str:
    """A metric's value, for people: shares of images in percent."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f}%" if metric in SHARES else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
