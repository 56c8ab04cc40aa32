"""How a study stands: its trials as a table in the terminal, the best so far, the time left."""

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study import Standing, Study

PLAIN_WIDTH = 160  # columns, where the output is no terminal
STYLES = {"running": "cyan", "waiting": "yellow", "stopped": "dim", "failed": "red"}
FRAME_ROWS = 7  # of the terminal, that are not trials
SHOW_EVERY_S = 1.0


def best_of(standings: Sequence[Standing], goal: str) -> Standing | None:
    """The best trial that did not fail; also one that still runs."""
    known = [one for one in standings if one.value is not None and one.state != "failed"]
    sign = 1 if goal == "maximize" else -1
    return max(known, key=lambda one: sign * one.value, default=None)


def seconds_left(standings: Sequence[Standing], count: int | None, workers: int) -> float | None:
    """From the epochs that are left and the seconds that one takes; None while that is unknown."""
    epochs = sum(one.epochs for one in standings)
    if not epochs or count is None or not workers:
        return None
    done = [one.epochs for one in standings if one.state in ("finished", "stopped", "failed")]
    begun = [one for one in standings if one.state in ("running", "waiting")]
    ahead = sum(max(one.job.epochs - one.epochs, 0) for one in begun)
    usual = sum(done) / len(done) if done else standings[0].job.epochs
    ahead += max(count - len(standings), 0) * usual
    return ahead * sum(one.seconds for one in standings) / epochs / workers


def in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def sentence(study: Study, standings: Sequence[Standing]) -> str:
    """All of it in one line."""
    states = Counter(one.state for one in standings)
    count = study.count
    of = f" of {count}" if count is not None else ""
    parts = [f"{len(standings)}{of} trials"]
    parts[0] += f": {', '.join(f'{n} {state}' for state, n in states.items())}" if states else ""
    best = best_of(standings, study.goal)
    if best:
        told = " ".join(study.told(best.job))
        parts.append(f"best {study.metric} {best.value:.4f} (trial {best.job.key}: {told})")
    left = seconds_left(standings, count, states["running"])
    if left:
        parts.append(f"about {in_words(left)} left")
    return "; ".join(parts)


def table(study: Study, standings: Sequence[Standing], rows: int | None = None) -> Table:
    """Every trial, or the best and the last ones where only so many rows have room."""
    best = best_of(standings, study.goal)
    shown = list(standings)
    if rows is not None and len(shown) > rows:
        last = shown[len(shown) - max(rows - 1, 1) :]
        shown = last if best is None or best in last else [best, *last]
    made = Table(box=None, pad_edge=False)
    made.add_column("trial")
    made.add_column("state")
    made.add_column("epoch", justify="right")
    made.add_column(Text(study.metric), justify="right")
    for key in study.searched:
        made.add_column(Text(key), justify="right")
    for one in shown:
        value = "" if one.value is None else f"{one.value:.4f}"
        parameters = (told.partition("=")[2] for told in study.told(one.job))
        cells = [one.job.key, one.state, f"{one.epochs}/{one.job.epochs}", value, *parameters]
        style = "bold green" if one is best else STYLES.get(one.state, "")
        made.add_row(*(Text(cell) for cell in cells), style=style)
    return made


class Shown(Console):
    def on_broken_pipe(self) -> None:
        # Not rich's own way, SystemExit: a search has trials to save.
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output")


def console() -> Console:
    found = Shown(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Shown(highlight=False, width=PLAIN_WIDTH)


class Board:
    """What `run` shows: a table that lives on a terminal, plain lines elsewhere."""

    def __init__(self, study: Study, clock: Callable[[], float], lives: bool = True):
        self.study, self.clock = study, clock
        self.console = console()
        self.lives = lives and self.console.is_terminal
        self.live: Live | None = None
        self.shown_at = -SHOW_EVERY_S

    def __enter__(self) -> "Board":
        if self.lives:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.show(now=True)
            with contextlib.suppress(OSError):
                self.live.__exit__(kind, error, trace)
        elif error is None:
            self.say(sentence(self.study, self.study.standings()))

    def note(self, line: str) -> None:
        """What the table shows, too."""
        if self.live is None:
            self.say(line)

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone; the trials must be saved
            self.console.print(Text(line), soft_wrap=True)

    def show(self, now: bool = False) -> None:
        if self.live is None or (not now and self.clock() < self.shown_at + SHOW_EVERY_S):
            return
        self.shown_at = self.clock()
        standings = self.study.standings()
        made = table(self.study, standings, self.console.height - FRAME_ROWS)
        told = Text(sentence(self.study, standings), overflow="fold")
        with contextlib.suppress(OSError):
            self.live.update(Group(made, told), refresh=True)
