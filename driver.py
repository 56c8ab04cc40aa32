"""Runs a study's trials: so many at once, each a process of its own, until nothing is left to try.

A trial that was killed or preempted by others is started again and goes on from its last whole
epoch. Ctrl-C, SIGTERM and SIGHUP save all trials; the same call goes on with them. Several drivers,
also on several machines, may work on one study.
"""

import errno
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import hyperband
from cli import Mistake
from ending import as_failure, on_request
from ranks import GONE, PROCESSES
from run_folder import is_in_use, read_summary
from standings import Board, best_of
from study import ENDS, End, Study
from study_folder import check_command
from trial import Job, Trial, last_lines, signal_by_torchrun

LOOK_EVERY_S = 0.1
ASK_EVERY_S = 2.0  # for a trial that a dead driver has left, while ours are at work
KILL_AFTER_S = 60.0  # a run's ending
STARTS = 3  # of a trial that is killed from outside
# What is said of a command's first word.
NOT_TO_RUN = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC)


class Source(Protocol):
    """Where the jobs come from: the search, or the list of what is to be confirmed."""

    over: tuple[str, ...]  # states of a run after which it is not started again

    def next(self) -> Job | None: ...

    def ended(self, job: Job, end: End) -> None: ...


class Search:
    """The trials of a study, until there are so many or one has reached the metric's target."""

    over = ENDS

    def __init__(self, study: Study, count: int | None):
        self.study, self.count = study, count
        self.target: float | None = study.sweep["metric"].get("target")

    def next(self) -> Job | None:
        return self.study.next(0 if self.target_reached else self.count)

    @property
    def target_reached(self) -> bool:
        if self.target is None:
            return False
        best = best_of(self.study.standings(), self.study.goal)
        if best is None:
            return False
        if self.study.goal == "maximize":
            return best.value >= self.target
        return best.value <= self.target

    def ended(self, job: Job, end: End) -> None:
        self.study.ended(job, end)


@dataclass
class Slot:
    """A place for one trial at a time: a GPU, or a share of the cores."""

    name: str
    env: Mapping[str, str]
    job: Job | None = None
    trial: Trial | None = None
    starts: int = 0
    kill_at: float | None = None
    rows: int = 0  # of its history that hyperband has seen


class Driver:
    def __init__(
        self,
        study: Study,
        source: Source,
        rule: Mapping[str, Any] | None,
        places: Sequence[tuple[str, Mapping[str, str]]],
        max_failures: int,
        board: Board,
    ):
        self.study, self.source, self.max_failures = study, source, max_failures
        self.slots = [Slot(name, env) for name, env in places]
        self.rule = rule  # of hyperband
        self.say, self.note, self.show = board.say, board.note, board.show
        self.failures = 0  # in a row
        self.request: str | None = None
        self.urgent = False
        self.ask_at = 0.0

    def listen(self) -> None:
        on_request(self.ask)

    def ask(self, request: str) -> None:
        # Only a second Ctrl-C is in a hurry: a closed terminal sends SIGHUP twice.
        self.urgent = self.request == request == "interrupt"
        self.request = self.request or request
        for slot in self.slots:  # at once: SIGTERM to all of a machine is a stop to them after 1 s
            if slot.trial is not None:
                slot.trial.save()

    def run(self) -> int:
        """0 when all is tried, 1 after too many failures in a row; look at `request`, too."""
        try:
            while self.request is None and self.failures < self.max_failures:
                self.look()
                if not self.fill():
                    break
                self.show()
                time.sleep(LOOK_EVERY_S)
        finally:
            self.end()
        if self.failures >= self.max_failures:
            self.say(f"{self.failures} failures in a row: no more trials are started")
        return int(self.failures >= self.max_failures)

    def fill(self) -> bool:
        """Begin what there is to begin; whether anything is at work."""
        for slot in self.slots:
            if self.request or self.failures >= self.max_failures:
                break
            if slot.job is None and time.monotonic() >= self.ask_at:
                slot.job, slot.starts = self.source.next(), 0
                if slot.job is None:
                    self.ask_at = time.monotonic() + ASK_EVERY_S
                elif is_in_use(slot.job.run):
                    self.say(
                        f"trial {slot.job.key}: its earlier process still works; it is waited for"
                    )
            if slot.job is not None and slot.trial is None and self.request is None:
                self.begin(slot)
        return any(slot.job for slot in self.slots) or not self.ask_at  # what was begun has ended

    def begin(self, slot: Slot) -> None:
        """Start its process, unless an earlier one still works or has come to an end."""
        job = slot.job
        if is_in_use(job.run):
            return
        ended = read_summary(job.run).get("state")
        if slot.starts == 0 and ended in self.source.over:
            # Its driver died before it could write that down.
            said = last_lines(self.study.log(job)) if ended == "failed" else ()
            self.close(slot, ended, said)
            return
        self.check_here(job)
        slot.starts += 1
        slot.rows = len(self.study.values(job))  # hyperband waits for one that this process wrote
        again = " again" if slot.starts > 1 or job.run.exists() else ""
        self.note(f"trial {job.key} begins{again}: {' '.join(self.study.told(job))} ({job.place})")
        env = {**slot.env, "WANDB_RUN_GROUP": self.study.name, "WANDB_PROJECT": self.study.project}
        try:
            slot.trial = Trial(job, self.study.sweep, self.study.trials, env)
        except OSError as error:
            if error.errno not in NOT_TO_RUN:
                raise as_failure(error, job.run, "the same call goes on") from error
            self.close(slot, "failed", [f"{error.filename}: {error.strerror}"])

    def check_here(self, job: Job) -> None:
        """Whether train.py, called from here, would do what the study's others did, and go on where
        this job's run is.
        """
        check_command(self.study, "other trials need it as it was")
        goes_to, is_in = self.study.output_dir(job.parameters), job.run.parent
        if is_in.is_dir() and not (goes_to.is_dir() and goes_to.samefile(is_in)):
            raise Mistake(
                f"the study's runs are in {is_in}, and a trial begun here would write to "
                f"{goes_to.resolve()}; call this where the study was begun"
            )

    def look(self) -> None:
        """Judge what has ended, and stop what hyperband gives no more hope."""
        for slot in self.slots:
            if slot.trial is None:
                continue
            status = slot.trial.status()
            if status is not None:
                self.judge(slot, status)
            elif slot.kill_at and time.monotonic() > slot.kill_at:
                slot.trial.kill()
        if self.rule:
            self.stop_the_hopeless()

    def judge(self, slot: Slot, status: int) -> None:
        trial, slot.trial, slot.kill_at = slot.trial, None, None
        state = read_summary(slot.job.run).get("state")
        died_of = status - 128 if 128 < status <= 128 + signal.NSIG else None
        if status == 1 and PROCESSES in slot.env:
            died_of = signal_by_torchrun(trial.log, trial.begins_at)
        said = last_lines(trial.log, trial.begins_at) or [f"exit status {status}"]
        if state == "failed" and not any(GONE in line for line in said):
            died_of = None  # it failed by itself, and what was left of it was killed
        if trial.asked_to_stop:
            self.close(slot, "finished" if state == "finished" else "stopped")
        elif state == "finished" or (status == 0 and state in ENDS):  # a crash after its end, too
            self.close(slot, state)
        elif died_of and slot.starts < STARTS:
            self.say(f"trial {slot.job.key}: its process was ended by signal {died_of}")
        elif died_of:
            error = f"ended {STARTS} times by signal {died_of}; by the system for want of memory?"
            self.close(slot, "failed", [error])
        else:
            self.close(slot, "failed", said)

    def close(self, slot: Slot, state: str, error: Sequence[str] = ()) -> None:
        """The job is done with: write its end down."""
        job, study = slot.job, self.study
        value, epochs = study.reached(job, state), study.epochs(job)
        if value is None and state != "failed":
            error, state = [f"it has no {study.metric}"], "failed"
        self.source.ended(job, End(state, value, epochs, tuple(error)))
        slot.job = slot.trial = None
        self.ask_at = 0.0
        if state == "failed":
            self.failures += 1
            self.say(
                f"trial {job.key} failed ({self.failures} of at most {self.max_failures} in a "
                f"row): {' | '.join(error)}; all of it: {study.log(job)}"
            )
        else:
            self.failures = 0
            self.note(f"trial {job.key} {state}: {study.metric} {value:.4f}, {epochs} epochs")

    def stop_the_hopeless(self) -> None:
        working = {}
        for slot in self.slots:
            if slot.trial is not None and not slot.trial.asked_to_stop:
                rows = len(self.study.values(slot.job))
                if slot.rows < rows < slot.job.epochs:  # after the last one nothing is saved
                    working[slot.job.run_id] = slot, rows
        if not working:
            return
        histories = {job.run_id: self.study.values(job) for job in self.study.jobs()}
        for run_id in hyperband.to_stop(self.rule, self.study.goal, histories, working.keys()):
            slot, _ = working[run_id]
            slot.trial.stop()
            slot.kill_at = time.monotonic() + KILL_AFTER_S
        for slot, rows in working.values():
            slot.rows = rows

    def end(self) -> None:
        """Save all that is at work."""
        working = [slot for slot in self.slots if slot.trial is not None]
        for slot in working:
            slot.trial.save()
        if working:
            self.say(f"{len(working)} trials are saved; the same call goes on with them")
        deadline = time.monotonic() + KILL_AFTER_S
        for slot in working:
            while slot.trial.status() is None:
                if self.urgent or time.monotonic() > deadline:
                    slot.trial.kill()
                time.sleep(0.05)
        for slot in self.slots:
            if slot.job is not None:
                self.study.release(slot.job.key)
