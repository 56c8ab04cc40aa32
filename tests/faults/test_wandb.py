"""W&B's server fails in the ways that servers do, with the real client and train.py: each run
finishes its training, has all of it on disk, and W&B gets it whole where the server comes back.

An outage of 20 s, a server that never answers, no login and a wrong key are in test_tracking.py.
"""

import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import assert_rows, assert_whole
from wandb_http import AWAY, CLOSED, NONE, Answer, Fault
from wandb_server import WandbServer

from records import read_rows
from runs import ANNOUNCED, Run, history_lines, summary

QUICK = {  # how long the client waits before it asks again, turned down
    f"WANDB_X_{what}_RETRY_WAIT_{end}_SECONDS": "1"
    for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for end in ("MIN", "MAX")
}
# The client waits 7 days for a server that has gone, says its source; silent, it tells nothing.
PATIENCE = {"WANDB_FINISH_TIMEOUT": "5", "WANDB_SILENT": "false"}
ERRORS = [Answer(status, b"<html>oops</html>") for status in (500, 502, 503)]
LIMITED = Answer(429, b'{"error": "rate limit exceeded"}', {"Retry-After": "1"})
PORTAL = Answer(200, b"<html>Welcome to the hotel's network</html>", {"Content-Type": "text/html"})
EPOCHS = 2


def every(count: int, fault: Fault, part: str = "") -> Callable[[str], Fault]:
    """At each `count`-th request whose path has `part`."""
    numbers = itertools.count(1)
    return lambda path: fault if part in path and next(numbers) % count == 0 else NONE


def at_random(share: float) -> Callable[[str], Fault]:
    dice = random.Random(0)

    def fault(path: str) -> Fault:
        happens, answer = dice.random() < share, dice.choice(ERRORS)
        return Fault(is_done=False, instead=answer) if happens else NONE

    return fault


def on_and_off(path: str) -> Fault:
    """Away for 2.5 of every 5 seconds."""
    return AWAY if time.monotonic() % 5 < 2.5 else NONE


class Counted:
    """A server's fault, with how often it happened."""

    def __init__(self, fault: Callable[[str], Fault]):
        self.fault, self.times = fault, 0

    def __call__(self, path: str) -> Fault:
        found = self.fault(path)
        self.times += found is not NONE
        return found


def begin(start, server: WandbServer, folder: Path, patch: str = "", **env: str) -> Run:
    env = {**server.env, **QUICK, **env}
    run = start(folder, patch=patch, env=env, epochs=EPOCHS, mistakes=4)
    run.timeout_s = 150
    return run


def assert_kept(run: Run) -> Path:
    """The run has finished and is whole on disk; the folder of the client's record."""
    assert run.wait() == 0, run.text
    assert "Traceback" not in run.text
    assert summary(run.folder)["state"] == "finished"
    assert len(history_lines(run.folder)) == EPOCHS + 1
    assert (run.folder / "best.pt").is_file()
    return assert_recorded(run)


def assert_recorded(run: Run) -> Path:
    record = (run.folder / "wandb" / "latest-run").resolve()
    rows = read_rows(record)
    assert_rows(rows, run.folder)
    assert sum("train/step" in row for row in rows) == 7 * EPOCHS
    panels = [row for row in rows if "val/gradcam.path" in row]
    assert len(panels) == EPOCHS
    for row in panels:
        picture = record / "files" / row["val/gradcam.path"]
        assert hashlib.sha256(picture.read_bytes()).hexdigest() == row["val/gradcam.sha256"]
    return record


FAULTS = {
    "replies lost": lambda: every(4, Fault(instead=CLOSED)),
    "429, too many requests": lambda: every(3, Fault(is_done=False, instead=LIMITED)),
    "500, 502 and 503 at random": lambda: at_random(0.3),
    "slow answers": lambda: lambda path: Fault(seconds=0.5),
    "away again and again": lambda: on_and_off,
    "garbage for the answers to rows": lambda: every(2, Fault(instead=PORTAL), "file_stream"),
}
CHEAP = "garbage for the answers to rows"


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == CHEAP else pytest.mark.slow) for k in FAULTS]
)
def test_all_arrives_by_a_server_that_fails(start, server, tmp_path, fault, kind):
    with fault(f"W&B: {kind}"):
        server.fault = Counted(FAULTS[kind]())
        run = begin(start, server, tmp_path)
        assert_kept(run)
        assert server.fault.times
        assert server.runs["run"].exit_code == 0
        assert_whole(server, server.runs["run"], run.folder)


@pytest.mark.slow
def test_a_server_that_comes_back_after_the_start(start, server, tmp_path, fault):
    with fault("W&B: away at the start, then there"):
        server.go_away(8)
        run = begin(start, server, tmp_path)
        assert_kept(run)
        assert "W&B cannot be reached" not in run.text
        assert_whole(server, server.runs["run"], run.folder)


def sync(server: WandbServer, home: Path, *arguments: str | Path) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "wandb", "sync", *arguments],
        cwd=home,  # where its log goes
        env={**os.environ, **server.env, **QUICK, "HOME": str(home)},
        capture_output=True,
        check=True,
        timeout=60,
    )


@pytest.mark.slow
def test_garbage_at_the_start_and_the_sync_that_the_run_names(start, server, tmp_path, fault):
    with fault("W&B: garbage at the start"):
        server.fault = every(1, Fault(is_done=False, instead=PORTAL))
        run = begin(start, server, tmp_path)
        record = assert_kept(run)
        assert "W&B cannot be reached" in run.text
        (named,) = re.findall("`wandb sync (.*)`", run.text)
        assert Path(named) == record
        assert server.runs == {}
        server.fault = lambda path: NONE
        sync(server, tmp_path, named)
        assert_whole(server, server.runs["run"], run.folder)


def assert_synced(server: WandbServer, run: Run, record: Path, home: Path) -> None:
    """With the server back, by one more call, all rows, pictures and the end are there. (Rows that
    had arrived come once more, with the same step, and the stand-in keeps both. Artifacts of an
    online run do not come: the client does not record them.)
    """
    server.fault, server.down_until = lambda path: NONE, 0.0
    sync(server, home, "--include-online", record)
    stored = server.runs["run"]
    assert stored.exit_code == 0
    assert stored.summary["state"] == "finished"
    assert_rows(list({row["_step"]: row for row in stored.history}.values()), run.folder)
    media = list((record / "files" / "media").rglob("*.*"))
    assert media
    for path in media:
        assert stored.files[str(path.relative_to(record / "files"))] == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["graphql", "store"])
def test_garbage_in_the_middle(start, server, tmp_path, fault, part):
    """An answer of 200 that W&B never gave: the client believes that the files have arrived. All
    rows do, and `wandb sync` brings the pictures.
    """
    with fault(f"W&B: garbage from {part}"):
        server.fault = Counted(every(7, Fault(is_done=part == "graphql", instead=PORTAL), part))
        run = begin(start, server, tmp_path)
        record = assert_kept(run)
        assert server.fault.times
        assert_rows(server.runs["run"].history, run.folder)
        assert_synced(server, run, record, tmp_path)


@pytest.mark.slow
def test_a_server_that_is_gone_for_good_at_the_end(start, server, tmp_path, fault):
    with fault("W&B: gone for good, at the end"):
        run = begin(start, server, tmp_path, ANNOUNCED.replace("WHERE", "finish"), **PATIENCE)
        run.until_here()
        server.go_away(3600)
        record = assert_kept(run)
        assert "`wandb sync --include-online" in run.text
        assert server.runs["run"].exit_code is None
        assert_synced(server, run, record, tmp_path)


@pytest.mark.slow
def test_a_server_that_is_gone_for_good_in_the_middle(start, server, tmp_path, fault):
    """The client takes the first artifact of a process only where a server is: so the model and the
    mistakes are in the run's folder alone, and the run says so.
    """
    with fault("W&B: gone for good, in the middle"):
        patch = ANNOUNCED.replace("WHERE", "log_picture") + "tracking.TRIES = 1"
        run = begin(start, server, tmp_path, patch, **PATIENCE)
        run.until_here()
        server.go_away(3600)
        record = assert_kept(run)
        for what in ("the model artifact", "the table of mistakes"):
            assert f"W&B: {what} failed, the run goes on" in run.text
        assert (run.folder / "figures" / "mistakes.png").is_file()
        assert "`wandb sync" in run.text
        assert_synced(server, run, record, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_waits_for_the_server(start, server, tmp_path, fault):
    with fault("W&B: gone for good, and kill -9 at the end"):
        run = begin(start, server, tmp_path, ANNOUNCED.replace("WHERE", "finish"))
        run.until_here()
        server.go_away(3600)
        time.sleep(3)
        run.kill()
        assert summary(run.folder)["state"] == "finished"
        record = assert_recorded(run)
        again = begin(start, server, tmp_path)
        assert again.wait() == 0
        assert "is finished: nothing to do" in again.text
        assert_synced(server, run, record, tmp_path)
