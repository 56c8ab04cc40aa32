"""Is the winner's lead more than noise? The best trials of a study again, with other seeds.

The split stays (it depends on `split_seed` alone). A mean is that of the new seeds only: the value
by which a trial won the search is lucky by that very choice.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from cli import Mistake
from difference import LIKELY
from run_folder import read_summary, writing
from study import End, Standing, Study
from trial import Job

SEED = "-seed"  # and its distance to the trial's own: the end of a run's name
DONE = "finished"


@dataclass(frozen=True)
class Confirmed:
    """One trial and what its other seeds gave."""

    trial: str
    run_id: str
    searched: str
    in_search: float
    values: dict[int, float]  # seed -> value
    failed: int = 0  # seeds, without a value
    open: int = 0  # seeds that are not done: another driver is at them, or none

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def __str__(self) -> str:
        told = f"trial {self.trial}: "
        if self.values:
            sd = f" ± {self.sd:.4f}" if self.sd is not None else ""
            told += f"{self.mean:.4f}{sd}, n = {len(self.values)} "
        lost = f" {failures(len(self.values), self.failed)}" if self.failed else ""
        return f"{told}({self.in_search:.4f}){lost}  {self.searched}"


class Confirmation:
    """The jobs: `top` finished trials, each with `seeds` other seeds, and what more of them an
    earlier call has finished.
    """

    over = (DONE,)  # one that failed is tried again by the next call

    def __init__(self, study: Study, top: int, seeds: int):
        self.study = study
        finished = [one for one in study.standings() if one.state == DONE]
        if not finished:
            raise Mistake(f"{study.folder}: no trial is finished, there is nothing to confirm")
        if "seed" in study.searched:
            raise Mistake(
                f"{study.folder}: `seed` is a parameter of the search, which has chosen by it; "
                "other seeds of the same trials would not be new ones"
            )
        best_first = study.goal == "maximize"
        self.trials = sorted(finished, key=lambda one: one.value, reverse=best_first)[:top]
        self.jobs = {
            one.number: [self._again(one, n) for n in sorted({*range(1, seeds + 1), *_done(one)})]
            for one in self.trials
        }
        self.failed: set[str] = set()

    def _again(self, one: Standing, offset: int) -> Job:
        job = one.job
        run_id = f"{job.run_id}{SEED}{offset}"
        before = {**self.study.by_command, **job.parameters}.get("seed", 0)
        parameters = {**job.parameters, "seed": int(before) + offset}
        key, run = f"{job.key}{SEED}{offset}", job.run.with_name(run_id)
        return Job(key, run_id, parameters, run, job.epochs)

    def next(self) -> Job | None:
        for jobs in zip_longest(*self.jobs.values()):  # one seed of each, then the next seed
            for job in filter(None, jobs):
                state = read_summary(job.run).get("state")
                if state in self.over or job.key in self.failed:
                    continue
                if self.study.claim(job.key):
                    return job
        return None

    def ended(self, job: Job, end: End) -> None:
        if end.state == "failed":
            self.failed.add(job.key)
        self.study.release(job.key)

    def results(self) -> list[Confirmed]:
        """Best first, those of which no seed has a value last."""
        found = []
        for one in self.trials:
            values, failed, left = {}, 0, 0
            for job in self.jobs[one.number]:
                state = read_summary(job.run).get("state")
                value = self.study.reached(job, DONE) if state in self.over else None
                if value is not None:
                    values[job.parameters["seed"]] = value
                elif state in (*self.over, "failed") or job.key in self.failed:
                    failed += 1
                else:
                    left += 1
            told = " ".join(self.study.told(one.job))
            found.append(
                Confirmed(one.job.key, one.job.run_id, told, one.value, values, failed, left)
            )
        sign = 1 if self.study.goal == "maximize" else -1
        return sorted(
            found,
            key=lambda one: -math.inf if one.mean is None else sign * one.mean,
            reverse=True,
        )


def _done(one: Standing) -> list[int]:
    names = [run.name for run in runs_of_seeds(one.job) if read_summary(run).get("state") == DONE]
    return [int(number) for name in names if (number := name.rpartition(SEED)[2]).isdecimal()]


def runs_of_seeds(job: Job) -> list[Path]:
    """The folders of what was tried again of a trial."""
    return sorted(job.run.parent.glob(f"{job.run_id}{SEED}*"))


def report(study: Study, confirmation: Confirmation) -> str:
    """The table and the sentence; both go to confirm.json, too."""
    with study.lock():  # of several drivers the last one knows what all have done
        results = confirmation.results()
        told = {
            "metric": study.metric,
            "goal": study.goal,
            "trials": [{**asdict(one), "mean": one.mean, "sd": one.sd} for one in results],
            "sentence": verdict(results, study.metric),
        }
        with writing(study.folder / "confirm.json") as file:
            file.write((json.dumps(told, indent=2) + "\n").encode())
    lines = [f"{study.metric}, mean ± sd over other seeds (in the search):"]
    lines += [f"  {one}" for one in results]
    return "\n".join([*lines, told["sentence"], f"kept in {study.folder / 'confirm.json'}"])


def failures(done: int, failed: int) -> str:
    return f"{failed} of {done + failed} seeds failed"


def verdict(results: Sequence[Confirmed], metric: str) -> str:
    """Whether the best one's lead over the next is more than what other seeds do, and which
    trials are less sure than that as seeds of theirs failed, or are not done yet.
    """
    lost = [
        f"of trial {one.trial} {failures(len(one.values), one.failed)}"
        for one in results
        if one.failed
    ]
    lost += [f"of trial {one.trial} {one.open} not done yet" for one in results if one.open]
    return "; ".join([_lead([one for one in results if one.values], metric), *lost])


def _lead(results: Sequence[Confirmed], metric: str) -> str:
    if len(results) < 2:
        return "one trial alone leads nobody" if results else "no seed has a value"
    first, second = results[:2]
    lead = abs(first.mean - second.mean)
    what = f"the lead of trial {first.trial} over trial {second.trial}, {lead:.4f} in {metric},"
    counts = sorted({len(one.values) for one in (first, second)}, reverse=True)
    if min(counts) < 2:
        more = "more --seeds" if first.failed or second.failed else "--seeds 3 or more"
        return f"{what} cannot be told from noise by one seed; give {more}"
    if not (first.sd or second.sd):
        return f"{what} stands beside seeds that are all alike: {min(counts)} do not show the noise"
    p = chance(list(first.values.values()), list(second.values.values()))
    more = "is more than noise" if p < LIKELY else "cannot be told from noise"
    seeds = (
        f"{counts[0]} seeds each" if len(set(counts)) == 1 else f"{counts[0]} and {counts[1]} seeds"
    )
    return f"{what} {more} (Welch's t-test, {seeds}, p = {p:.2g})"


def chance(one: Sequence[float], two: Sequence[float]) -> float:
    """How often a lead like this comes by chance where there is none: Welch's p, two-sided."""
    from scipy.stats import ttest_ind  # a second to import

    return float(ttest_ind(one, two, equal_var=False).pvalue)
