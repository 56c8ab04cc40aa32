"""How a run ends before its time: the first request decides, and it is looked at after every batch.

stop       W&B's stop, or SIGTERM in a sweep: keep the score, exit status 0
preempt    SIGUSR1, or SIGTERM otherwise: go on later; a shell sees 143
interrupt  Ctrl-C: go on later; a shell sees 130
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from cli import DISK_FULL, Failure, Mistake, die_of_signal, flush
from processes import parents
from ranks import ALONE, Ranks, of_group

# As torch, CUDA's libraries and cuDNN on a GPU that is nearly full say it.
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "unable to find an engine")
NO_THREAD = "can't start new thread"  # as Python says it
OF_LOADER = ("DataLoader worker", "Pin memory thread")  # how torch begins of what has ended
PARENT_GRACE_S = 1.0  # an agent that ends itself is gone by then, one that stops a run is not
INSISTS_AFTER_S = 2.0  # between two Ctrl-C
STATES = {"stop": "stopped", "preempt": "preempted", "interrupt": "interrupted"}
EXIT_CODES = {"stop": 0, "preempt": 143, "interrupt": 255}  # as W&B records them


class Ended(Exception):
    """Raised where the run leaves its work because of a request."""

    def __init__(self, request: str):
        super().__init__(request)
        self.request = request


class Ending:
    """Collects signals and W&B's stop from `listen` on; `check` raises Ended once there was one.

    Under torchrun what counts as the parent is torchrun's own, and a torchrun that has gone without
    a word (SIGUSR1 ends it) preempts.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.request: str | None = None
        self._term_at: float | None = None
        self._interrupted_at: float | None = None
        self.over = False  # main has returned: a late Ctrl-C is its caller's
        self._ranks = ranks
        self._parents = parents(2 if ranks.launched else 1)

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, lambda *_: self.ask("preempt"))
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup and `&`
            signal.signal(signal.SIGINT, self._on_interrupt)

    def ask(self, request: str) -> None:
        """The first request stays; also called by W&B's thread."""
        self.request = self.request or request

    def check(self) -> None:
        if self.request is None and self._term_at is not None:
            self._decide_term()
        if self._ranks.launched and os.getppid() != self._parents[0]:
            self.ask("preempt")
        if self.request is not None:
            raise Ended(self.request)

    def check_together(self) -> None:
        """For what all processes of a run do in step: all leave it by the same request."""
        if not self._ranks.several:
            self.check()
            return
        with contextlib.suppress(Ended):
            self.check()
        agreed = self._ranks.agree(self.request)
        if agreed:
            self.request = agreed
            raise Ended(agreed)

    def check_unbegun(self) -> None:
        """While a run is made ready. (Several processes leave together, at a later place.)"""
        with contextlib.suppress(Ended):
            self.check()
        if self.request and not self._ranks.several:
            raise Ended(self.request)

    def settle(self) -> str | None:
        """The request, if there is one; waits out the second in which SIGTERM's meaning is open."""
        while self.request is None and self._term_at is not None:
            self._decide_term()
            time.sleep(0.05)
        return self.request

    def _on_interrupt(self, *_) -> None:
        """Whoever insists gets it at once, as by kill -9. (torchrun sends its own, too.)"""
        now = time.monotonic()
        self._interrupted_at = self._interrupted_at or now
        if not self.over and now - self._interrupted_at > INSISTS_AFTER_S:
            die_of_signal(signal.SIGINT)
        self.ask("interrupt")

    def _on_term(self, *_) -> None:
        if "WANDB_SWEEP_PARAM_PATH" not in os.environ:
            self.ask("preempt")
        elif self._term_at is None:
            self._term_at = time.monotonic()

    def _decide_term(self) -> None:
        """In a sweep SIGTERM means stop, unless the agent dies, too: then the machine goes away."""
        if parents(len(self._parents)) != self._parents:
            self.ask("preempt")
        elif time.monotonic() - self._term_at >= PARENT_GRACE_S:
            self.ask("stop")


def on_request(ask: Callable[[str], None]) -> None:
    """For what starts runs and does not train: every signal to end preempts them, but Ctrl-C."""
    for number, request in (
        (signal.SIGTERM, "preempt"),
        (signal.SIGUSR1, "preempt"),
        (signal.SIGHUP, "preempt"),
        (signal.SIGINT, "interrupt"),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup and `&`
            signal.signal(number, lambda *_, request=request: ask(request))


def die_of(request: str) -> NoReturn:
    """End the process as the request wants it seen: by the signal itself, or with status 0."""
    if request == "stop":
        raise SystemExit(0)
    with contextlib.suppress(OSError):  # nobody reads any more
        flush()
    die_of_signal(signal.SIGTERM if request == "preempt" else signal.SIGINT)


@contextmanager
def workers_may_end(ending: Ending) -> Iterator[None]:
    """What is left because of a request is left by `Ended`, also where torch is faster: a SIGTERM
    to the whole group ends the loader's workers, too, and torch raises where it waits for them.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(OF_LOADER) or not ending.settle():
            raise
        raise Ended(ending.request) from error


def to_go_on(run: Path) -> str:
    return f"the same call with --run_id={run.name} goes on"


@contextmanager
def in_one_line(run: Path, again: str = "") -> Iterator[None]:
    """For work on a run, or for one, that is not its training."""
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough, and there is nothing to end
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        raise as_failure(error, run, again) from error


def is_no_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(words in str(error) for words in NO_MEMORY)


def _is_no_fork(error: Exception) -> bool:
    return isinstance(error, BlockingIOError) and error.strerror == os.strerror(errno.EAGAIN)


def as_failure(error: Exception, run: Path, again: str = "") -> Exception:
    """One line for what is no fault of the program: memory or disk at an end, a diverged loss."""
    if isinstance(error, Failure | Mistake):
        return error
    if isinstance(error, RuntimeError) and of_group(error):  # in the middle of a step
        return of_group(error)
    if isinstance(error, BrokenPipeError):
        return Failure(f"{run}: nobody reads the output; {again or to_go_on(run)}")
    if is_no_memory(error):
        return Failure(f"{run}: out of memory; try a smaller --batch_size")
    if _is_no_fork(error) or NO_THREAD in str(error):
        fewer = "are there too many processes (ulimit -u, a container's limit)? try fewer --workers"
        return Failure(f"{run}: {error}; {fewer}; {again or to_go_on(run)}")
    if isinstance(error, BrokenExecutor):
        return Failure(f"{run}: a process that decodes images was killed; is memory short?")
    if str(error).startswith(OF_LOADER):  # it was killed, or cannot hand its batch over
        reason = str(error).splitlines()[0].rstrip(". ")
        fewer = "fewer --workers take less memory, also of /dev/shm"
        return Failure(f"{run}: {reason}; {fewer}; {again or to_go_on(run)}")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return Failure(f"{run}: disk full; make room; {again or to_go_on(run)}")
    if isinstance(error, OSError) and error.filename:
        return Failure(f"{error.filename}: {error.strerror}")
    return error
