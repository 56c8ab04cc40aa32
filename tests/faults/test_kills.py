"""kill -9 and signals at random moments of every phase: what is resumed ends with the bits of a run
that was never disturbed, and nothing is left behind: no process, no lock, no temporary file.
"""

import random
import signal
import time
from pathlib import Path

import pytest
from procs import at_home_in

from run_folder import is_in_use
from runs import PAUSES, Run, assert_same_bits, history_lines, summary

EPOCHS = 2
ONCE = ("loading", "pictures", "ending", "finish")  # phases that a run comes to once
ALL_GONE_S = 20  # W&B's service looks for its parent now and then
# Slow enough that a random moment falls anywhere.
SLOWLY = PAUSES["training"].replace("time.sleep(0.3)", "time.sleep(0.1)")


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> Path:
    run = start(tmp_path_factory.mktemp("undisturbed"), epochs=EPOCHS, workers=2)
    assert run.wait() == 0, run.text
    return run.folder


def assert_nothing_left(run: Run, home: Path) -> None:
    deadline = time.monotonic() + ALL_GONE_S
    while left := at_home_in(home):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not is_in_use(run.folder)


def finish(start, home: Path, undisturbed: Path, lines: list[str], **flags) -> None:
    """The same call again goes on to the same bits."""
    run = start(home, epochs=EPOCHS, **flags)
    assert run.wait() == 0, run.text
    assert history_lines(run.folder)[: len(lines)] == lines
    assert_same_bits(run.folder, undisturbed)
    assert summary(run.folder)["state"] == "finished"
    assert_nothing_left(run, home)
    assert not [path for path in run.folder.rglob("*") if path.name.endswith((".tmp", ".new"))]


QUICK = {("checkpoint", 2)}  # of them in every test run; ten more kills are in test_resume.py


@pytest.mark.parametrize(
    ("phase", "workers"),
    [
        pytest.param(p, w, marks=() if (p, w) in QUICK else pytest.mark.slow)
        for p in PAUSES
        for w in (0, 2)
    ],
)
def test_killed_in_a_phase(phase, workers, start, tmp_path, undisturbed, fault):
    dice = random.Random(f"{phase} {workers}")
    here = tmp_path / "here"
    lines: list[str] = []
    kills = 1 if phase == "finish" else 2  # of a run that has told its end only W&B's is to be done
    for kill in range(kills):
        here.unlink(missing_ok=True)
        run = start(tmp_path, patch=PAUSES[phase], epochs=EPOCHS, workers=workers)
        for _ in range(1 if phase in ONCE else dice.randint(1, 3)):
            here.unlink(missing_ok=True)
            run.until(lambda run=run: here.exists() or run.ended)
        time.sleep(dice.uniform(0, 0.5))
        with fault(f"kill -9, {phase}"):
            run.kill()
            assert run.wait() == 137
            assert_nothing_left(run, tmp_path)
            now = history_lines(run.folder)
            assert now[: len(lines)] == lines
            lines = now
            if kill == kills - 1:
                finish(start, tmp_path, undisturbed, lines, workers=2 - workers)


SIGNALS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGTERM, 5), (signal.SIGUSR1, 5), (signal.SIGINT, 4)]
)
def test_signals_at_random_moments(number, times, seed, start, tmp_path, undisturbed, fault):
    dice = random.Random(f"{number} {seed}")
    lines: list[str] = []
    for again in range(times):
        run = start(tmp_path, patch=SLOWLY, epochs=EPOCHS, workers=2 * (again % 2))
        # Not before it listens: until then a signal ends it as any program, with nothing begun.
        run.until(lambda run=run: listens(run.pid, number) or run.ended)
        time.sleep(dice.uniform(0, 2.5))
        with fault(f"{signal.Signals(number).name}, any moment"):
            run.signal_group(number)
            assert run.wait() in (SIGNALS[number], 0), run.text
            assert "Traceback" not in run.text
            assert_nothing_left(run, tmp_path)
            now = history_lines(run.folder)
            assert now[: len(lines)] == lines
            lines = now
            if again == times - 1:
                finish(start, tmp_path, undisturbed, lines)


def listens(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
