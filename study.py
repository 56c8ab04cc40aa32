"""A study: all that an offline sweep has tried, in a folder that several machines may share.

sweeps/<name>/sweep.yaml       the sweep, as it was given last
sweeps/<name>/command.yaml     what its command's recipe and flags gave then
              study.journal    every trial, its parameters and its value, written by Optuna
              trials/007.yaml  the parameters, as train.py has them; 007.log: what it printed
              trials/007.lock  locked by the driver whose trial it is
              .lock            locked while one decides what is tried next
              confirm.json, pushed.json: what `confirm` found, what `push` has done

A driver that dies leaves its trials in the journal as running and their locks free: whoever comes
next takes them up. What a trial has reached is read from its run's folder.
"""

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import yaml

import locks
import sweep_file
from collection import at_largest, best, read_history
from config import FIELDS, Config, to_dict
from run_folder import is_in_use, is_locked, read_summary
from sweep_parameters import distribution
from tracking import PROJECT
from trial import Job

ENDS = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class End:
    """How a trial ended: one of ENDS, its value, and what it said if it failed."""

    state: str
    value: float | None
    epochs: int
    error: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """A trial as `status` shows it. States: those of ENDS, running, waiting (to be taken up)."""

    number: int
    job: Job
    state: str
    epochs: int
    value: float | None
    error: tuple[str, ...]
    seconds: float  # of its epochs, in all


@dataclass(frozen=True)
class Progress:
    """What a study needs of a run's history; its rows would be hundreds of MB of 5,000 trials."""

    stamp: tuple[int, ...] = ()  # of the file
    epochs: int = 0
    values: Sequence[float] = ()  # the metric, where an epoch has it
    at_largest: Sequence[float] = ()  # those that count in the end
    seconds: float = 0.0


class Study:
    """Use `create` or `load`."""

    def __init__(self, folder: Path, sweep: dict[str, Any], token: str, optuna_study, storage):
        self.folder, self.sweep, self.token = folder, sweep, token
        self.optuna, self.storage = optuna_study, storage
        self.trials = folder / "trials"
        self.claims: dict[str, IO] = {}
        self._progress: dict[Path, Progress] = {}
        self._ended: dict[int, Standing] = {}  # which change no more

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def metric(self) -> str:
        return self.sweep["metric"]["name"]

    @property
    def goal(self) -> str:
        return self.sweep["metric"].get("goal", "minimize")

    @property
    def count(self) -> int | None:
        """Trials in all, as the last `run` was told."""
        return self.optuna.user_attrs.get("count")

    @count.setter
    def count(self, count: int | None) -> None:
        if count != self.count:
            self.optuna.set_user_attr("count", count)

    @cached_property
    def by_command(self) -> dict[str, Any]:
        """What the command's own words give to every trial, as it was when the study began."""
        kept = self.folder / "command.yaml"
        if kept.is_file():
            return yaml.safe_load(kept.read_text(encoding="utf-8"))
        return sweep_file.of_command(self.sweep.get("command"))

    def output_dir(self, parameters: dict[str, Any]) -> Path:
        """Where the run of a trial is: as a parameter, in the command, or Config's own."""
        given = {**to_dict(Config()), **self.by_command, **self._here, **parameters}
        return Path(given["output_dir"])

    @cached_property
    def _here(self) -> dict[str, Any]:
        return sweep_file.output_dir_of(self.sweep.get("command"))

    @property
    def project(self) -> str:
        return os.environ.get("WANDB_PROJECT") or self.sweep.get("project") or PROJECT

    @property
    def searched(self) -> list[str]:
        """The parameters that differ from trial to trial."""
        parameters = self.sweep["parameters"]
        return [key for key in parameters if distribution(parameters[key]) != "constant"]

    def told(self, job: Job) -> list[str]:
        """The searched parameters of a trial, for people."""
        given = [(key, job.parameters[key]) for key in self.searched]
        return [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in given]

    def log(self, job: Job) -> Path:
        return self.trials / f"{job.key}.log"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One driver at a time decides what is tried next, by which all others know of it."""
        with open(self.folder / ".lock", "a") as file:
            locks.wait_for(file)
            yield

    def claim(self, key: str) -> bool:
        """Make a job ours, as long as we live."""
        if key in self.claims:
            return False
        file = open(self.trials / f"{key}.lock", "a")
        if not locks.take(file):
            file.close()
            return False
        self.claims[key] = file
        return True

    def release(self, key: str) -> None:
        self.claims.pop(key).close()

    def _is_claimed(self, key: str) -> bool:
        return key in self.claims or is_locked(self.trials / f"{key}.lock", locks.TRIES)

    def job(self, number: int, given: dict[str, Any]) -> Job:
        """A trial by what the journal has of it."""
        run, parameters = Path(given["run"]), given["parameters"]
        if not run.parent.is_dir():  # moved, or seen from another machine
            run = self.output_dir(parameters) / given["run_id"]
        epochs = {**self.by_command, **parameters}.get("epochs", FIELDS["epochs"].default)
        return Job(f"{number:03d}", given["run_id"], parameters, run, int(epochs))

    def next(self, count: int | None) -> Job | None:
        """A trial that nobody works on any more, else a new one up to `count`; it is ours now."""
        with self.lock():
            begun = 0
            for trial in self.optuna.get_trials(deepcopy=False):
                begun += "job" in trial.user_attrs
                if trial.state.is_finished() or not self.claim(f"{trial.number:03d}"):
                    continue
                trial = self.optuna.get_trials(deepcopy=False)[trial.number]
                if trial.state.is_finished():  # by its driver, between our look and our claim
                    self.release(f"{trial.number:03d}")
                    continue
                if "job" in trial.user_attrs:
                    return self.job(trial.number, trial.user_attrs["job"])
                self._forget(trial.number)
            return None if count is not None and begun >= count else self._new()

    def _forget(self, number: int) -> None:
        """Its driver died before it began: not one of the study's trials."""
        from search import FORGOTTEN, IMPUTED

        self._fail(number, {FORGOTTEN: True, IMPUTED: None})
        self.release(f"{number:03d}")

    def _fail(self, number: int, attributes: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        self._note(number, attributes)
        self.optuna.tell(number, state=TrialState.FAIL)

    def _note(self, number: int, attributes: dict[str, Any]) -> None:
        trial_id = self.optuna.get_trials(deepcopy=False)[number]._trial_id
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def _new(self) -> Job | None:
        import search
        from space import Space

        space = Space(self.sweep["parameters"])
        seed = int(self.token, 36)
        trial = search.ask(self.optuna, space, self.sweep["method"], seed)
        if trial is None:
            return None  # the grid has no more points
        claimed = self.claim(f"{trial.number:03d}")
        assert claimed, "a new trial is known to nobody else"
        values = space.values(trial.params)
        run_id = f"{plain(self.name)}-{self.token}-{trial.number:03d}"
        given = {"run_id": run_id, "parameters": values}
        given["run"] = str(self.output_dir(values).resolve() / run_id)
        trial.set_user_attr("job", given)
        return self.job(trial.number, given)

    def ended(self, job: Job, end: End) -> None:
        """Write a trial's end down, once, and give it out of our hands."""
        from search import IMPUTED

        number = int(job.key)
        self._note(number, {"end": asdict(end)})
        if end.state != "failed":
            self.optuna.tell(number, end.value)
        elif end.value is not None and self.sweep["metric"].get("impute") in ("latest", "best"):
            self._fail(number, {IMPUTED: end.value})
        else:
            self._fail(number, {})  # the search takes it for the worst of all
        self.release(job.key)

    def epochs(self, job: Job) -> int:
        """Whole ones so far."""
        return self._progress_of(job.run).epochs

    def values(self, job: Job) -> Sequence[float]:
        """The metric after every epoch."""
        return self._progress_of(job.run).values

    def _progress_of(self, run: Path) -> Progress:
        """Read again only where the file has changed."""
        try:
            about = (run / "history.csv").stat()
        except (FileNotFoundError, NotADirectoryError):
            return Progress()
        stamp = (about.st_mtime_ns, about.st_size, about.st_ino)
        known = self._progress.get(run)
        if known is None or known.stamp != stamp:
            rows = read_history(run)
            values, counted = (
                array("d", (row[self.metric] for row in some if self.metric in row))
                for some in (rows, at_largest(rows))
            )
            seconds = sum(row.get("time/epoch_s", 0) for row in rows)
            known = self._progress[run] = Progress(stamp, len(rows), values, counted, seconds)
        return known

    def reached(self, job: Job, state: str) -> float | None:
        """A run's value: the best over its epochs (where its images grew: at their largest); of a
        failed one with `impute: latest`, the last; where no epoch has the metric, the summary's.
        """
        values = self._progress_of(job.run).at_largest
        if state == "failed" and self.sweep["metric"].get("impute") == "latest":
            values = values[-1:]
        if not values:
            told = read_summary(job.run).get(self.metric)
            values = [told] if isinstance(told, int | float) else []
        return best(values, self.goal)

    def jobs(self) -> list[Job]:
        """All trials, by their numbers."""
        return [
            self.job(trial.number, trial.user_attrs["job"])
            for trial in self.optuna.get_trials(deepcopy=False)
            if "job" in trial.user_attrs
        ]

    def standings(self) -> list[Standing]:
        found = []
        for trial in self.optuna.get_trials(deepcopy=False):
            if "job" not in trial.user_attrs:
                continue
            standing = self._ended.get(trial.number) or self._standing(trial)
            if trial.state.is_finished():
                self._ended[trial.number] = standing
            found.append(standing)
        return found

    def _standing(self, trial) -> Standing:
        job = self.job(trial.number, trial.user_attrs["job"])
        made = self._progress_of(job.run)
        if trial.state.is_finished():
            end = trial.user_attrs["end"]
            state, value, error = end["state"], end["value"], tuple(end["error"])
            return Standing(trial.number, job, state, end["epochs"], value, error, made.seconds)
        state = "running" if self._is_claimed(job.key) or is_in_use(job.run) else "waiting"
        value = self.reached(job, state)
        return Standing(trial.number, job, state, made.epochs, value, (), made.seconds)


def plain(name: str) -> str:
    """What a run's id may have of a name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:60] or "sweep"
