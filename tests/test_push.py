"""`sweep.py push`: offline runs to the server, by the real client, against the stand-in."""

import dataclasses
import fcntl
import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from sweeps import assert_whole
from wandb_server import ENTITY, LOGIN_MISTAKES, WandbServer

import sweep_file
from conftest import REPO, all_files
from runs import PAUSES, Run, history, summary
from study import End
from study_folder import create

OFFLINE = {"WANDB_MODE": "offline", "WANDB_PROJECT": "tinysweep", "WANDB_RUN_GROUP": "study"}
HEADER = b":W&B\xe1\xbe\x00"  # all that is left of a run that was killed at its start
CALL = """
import arrived, sweep
arrived.GRACE_S = 2
train.command = lambda _: sweep.main(["push", {!r}])
"""
IMPATIENT = "arrived.TIMEOUT_S = 2"
FEW_TRIES = {  # where the server goes away
    f"WANDB_X_{what}_RETRY_{key}": "1"
    for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for key in ("MAX", "WAIT_MIN_SECONDS", "WAIT_MAX_SECONDS")
}


@pytest.fixture(scope="module")
def made(start, tmp_path_factory) -> dict[str, Path]:
    """Offline runs: `whole`; `moved`, which was preempted, resumed and then moved."""
    base = tmp_path_factory.mktemp("made")
    whole = start(base / "whole", "whole", env=OFFLINE, epochs=1, mistakes=4)
    again = start(base / "again", "whole-seed1", env=OFFLINE, epochs=1, mistakes=4, seed=1)
    moved = start(base / "first", "moved", PAUSES["training"], env=OFFLINE, epochs=2, mistakes=4)
    moved.until_epoch(1)
    moved.signal(signal.SIGUSR1)
    assert moved.wait() == 143, moved.text
    moved = start(base / "first", "moved", env=OFFLINE, epochs=2, mistakes=4)
    assert (whole.wait(), moved.wait(), again.wait()) == (0, 0, 0), whole.text + moved.text
    (base / "first").rename(base / "second")
    runs = {"whole": whole.folder, "whole-seed1": again.folder}
    return {**runs, "moved": base / "second" / "runs" / "moved"}


@pytest.fixture
def study(tmp_path, zygote, server, made):
    return Study(tmp_path, zygote, server, made)


class Study:
    """A study whose trials are copies of the runs that were made, to be pushed."""

    def __init__(self, folder: Path, zygote, server: WandbServer, made: dict[str, Path]):
        self.folder, self.zygote, self.server, self.made = folder, zygote, server, made
        self.kept = create(folder / "study", sweep_file.read(REPO / "sweep.yaml"))

    def add(self, name: str) -> Path:
        path = self.folder / "runs" / name
        shutil.copytree(self.made[name], path, symlinks=True)
        if not name.endswith("-seed1"):  # of `confirm`, known by its name
            self.is_trial(path)
        return path

    def is_trial(self, path: Path, state: str | None = None) -> None:
        """`state`: as the study says that it ended."""
        parameters = {"max_lr": 0.1, "aug_strength": 1.0, "epochs": 2}
        job = {"run_id": path.name, "run": str(path), "parameters": parameters}
        self.kept.optuna.ask().set_user_attr("job", job)
        if state:
            job = self.kept.jobs()[-1]
            assert self.kept.claim(job.key)
            self.kept.ended(job, End(state, None, 0))

    def start(self, patch: str = "", **env: str) -> Run:
        code = CALL.format(str(self.folder / "study")) + patch
        env = {**self.server.env, **env}
        run = Run(self.zygote, self.folder, run_id="", patch=code, **env)
        run.timeout_s = 100
        return run

    def push(self, patch: str = "", **env: str) -> tuple[int, str]:
        run = self.start(patch, **env)
        return run.wait(), run.text

    def state(self, name: str, **changed) -> None:
        """As if a run had ended otherwise."""
        path = self.folder / "runs" / name
        (path / "summary.json").write_text(json.dumps({**summary(path), **changed}))

    def assert_whole(self, name: str) -> None:
        run, folder = self.server.runs[name], self.folder / "runs" / name
        assert (run.exit_code, run.state) == (0, "finished")
        # Where the table was logged again the first row stays, too.
        *spare, _ = (row for row in run.history if "val/mistakes" in row)
        assert len(spare) <= 1
        rows = [row for row in run.history if row not in spare]
        steps = [row["train/step"] for row in rows if "train/step" in row]
        assert len(steps) >= 7 * len(history(folder))
        assert name == "moved" or len(steps) == len(set(steps))  # a killed epoch may be there twice
        assert_whole(self.server, dataclasses.replace(run, history=rows), folder)
        for path in folder.rglob("offline-run-*/files/media/images/**/*.*"):
            assert run.files[str(path).split("/files/")[1]] == path.read_bytes()


def test_all_arrives_also_what_a_moved_folder_lost_and_nothing_twice(study, server):
    whole, moved = study.add("whole"), study.add("moved")
    assert len(list(moved.glob("wandb/offline-run-*"))) == 2
    killed = whole / "wandb" / "offline-run-20260101_000000-whole"
    killed.mkdir()
    (killed / "run-whole.wandb").write_bytes(HEADER)
    shutil.copytree(whole, study.folder / "runs" / "waiting")
    study.is_trial(study.folder / "runs" / "waiting")
    study.state("waiting", state="preempted")
    study.add("whole-seed1")
    (study.folder / "runs" / "lost").mkdir()
    study.is_trial(study.folder / "runs" / "lost", "failed")
    status, text = study.push(WANDB_MODE="offline", WANDB_RUN_ID="other", WANDB_SWEEP_ID="other")
    assert status == 0, text
    study.assert_whole("whole")
    study.assert_whole("moved")
    (sweep,) = server.sweeps.values()
    assert sweep.prior == ["whole", "moved"]
    assert server.runs["whole-seed1"].sweep is None  # by `confirm`: in the project, no trial
    assert sweep.config["name"] == "study"
    assert "WANDB_MODE=offline" in text
    assert "moved: has arrived; logged again: the model, the table of mistakes" in text
    assert "3 of 3 ended runs are whole" in text
    assert "left out until they have ended: waiting\n" in text
    assert "left out, for want of a config.yaml or a summary.json: lost" in text
    agent = f"wandb agent {ENTITY}/tinysweep/{sweep.name}"
    assert agent in text
    del server.seen[:]
    status, text = study.push()
    assert status == 0
    assert agent in text
    assert server.changes() == []
    assert len(server.sweeps) == 1


@pytest.mark.parametrize("mistake", LOGIN_MISTAKES)
def test_a_push_that_cannot_begin_changes_nothing(study, server, mistake):
    env, status, words = LOGIN_MISTAKES[mistake]
    study.add("whole")
    before = all_files(study.folder / "runs")
    told, text = study.push(IMPATIENT if status == 1 else "", **env)
    assert told == status, text
    assert len(text.splitlines()) == 1
    assert words in text
    assert not env.get("WANDB_API_KEY") or env["WANDB_API_KEY"] not in text
    assert all_files(study.folder / "runs") == before
    assert not (study.folder / "study" / "pushed.json").exists()
    assert server.changes() == []


PLACES = [  # an operation of the server, whether it is done before all breaks off
    ("upsert_bucket", True),
    ("commit_artifact", False),
    ("file_stream", False),
    ("file_stream", True),
    ("artifact_type", False),  # the moved run is open again
    ("upsert_sweep", False),
    ("upsert_sweep", True),
]


def assert_pushed(study, server, name: str) -> None:
    """By one more call, and into one sweep."""
    status, text = study.push()
    assert status == 0, text
    study.assert_whole(name)
    (sweep,) = server.sweeps.values()
    assert sweep.prior == [name]


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "is_done"), PLACES)
def test_the_server_goes_away_and_push_is_called_again(study, server, operation, is_done):
    name = "moved" if operation == "artifact_type" else "whole"
    study.add(name)
    server.interrupt(operation, is_done, lambda: server.go_away(3600))
    status, text = study.push(IMPATIENT, **FEW_TRIES)
    assert status == 1, text
    assert "Traceback" not in text
    assert "push again" in text or "made no sweep" in text
    server.down_until = 0.0
    assert_pushed(study, server, name)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "is_done"), [PLACES[i] for i in (1, 3, 4, 6)])
def test_push_is_killed_and_called_again(study, server, operation, is_done):
    name = "moved" if operation == "artifact_type" else "whole"
    study.add(name)
    reached = threading.Event()
    server.interrupt(operation, is_done, reached.set)
    run = study.start()
    run.until(reached.is_set)
    run.kill()
    assert_pushed(study, server, name)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 9, 12])  # before and after the epoch, and its panel
def test_a_record_that_broke_off_goes_on_where_it_did(study, server, rows):
    study.add("whole")
    real, reached = server.file_stream, threading.Event()

    def in_part(name: str, sent: dict) -> dict:
        lines = sent.get("files", {}).get("wandb-history.jsonl", {"content": []})["content"]
        if reached.is_set():
            raise ConnectionError
        if len(server.runs[name].history) + len(lines) < rows:
            return real(name, sent)
        del lines[rows - len(server.runs[name].history) :]
        real(name, {"files": {"wandb-history.jsonl": sent["files"]["wandb-history.jsonl"]}})
        reached.set()
        raise ConnectionError

    server.file_stream = in_part
    run = study.start()
    run.until(reached.is_set)
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert "Traceback" not in run.text
    assert len(server.runs["whole"].history) == rows
    server.file_stream = real
    status, text = study.push()
    assert status == 0, text
    study.assert_whole("whole")


@pytest.mark.slow
def test_a_server_that_counts_late_is_sent_nothing_twice(study, server):
    """The real one tells of rows some seconds after it was sent them."""
    study.add("moved")
    real_stream, real_run, real_rows = (
        server.file_stream,
        server.run,
        server.run_sampled_history,
    )
    grown = [(0.0, 0)]  # when the history grew, how long it was then

    def stream(name: str, sent: dict) -> dict:
        told = real_stream(name, sent)
        grown.append((time.monotonic(), len(server.runs[name].history)))
        return told

    def counted() -> int:
        return [lines for at, lines in grown if at < time.monotonic() - 3][-1]

    def run(asked: dict) -> dict:
        told = real_run(asked)
        if told["project"]["run"]:
            told["project"]["run"]["historyLineCount"] = counted()
        return told

    def rows(asked: dict) -> dict:
        told = real_rows(asked)
        (found,) = told["project"]["run"]["sampledHistory"]
        shown = server.runs["moved"].history[: counted()]
        found[:] = [row for row in found if any(row.items() <= one.items() for one in shown)]
        return told

    server.file_stream, server.run, server.run_sampled_history = stream, run, rows
    status, text = study.push(patch="arrived.GRACE_S = 8")
    assert status == 0, text
    study.assert_whole("moved")


@pytest.mark.slow
def test_prior_runs_that_the_server_lists_outside_of_the_sweep_do_not_join_it_again(study, server):
    server.lists_prior_runs = False
    study.add("whole")
    assert study.push()[0] == 0
    (sweep,) = server.sweeps.values()
    assert (sweep.prior, server.runs["whole"].sweep) == (["whole"], None)
    del server.seen[:]
    status, text = study.push()
    assert status == 0, text
    assert server.changes() == []


@pytest.mark.slow
def test_later_runs_join_the_sweep_and_a_lost_record_harms_nothing(study, server):
    study.add("whole")
    assert study.push()[0] == 0
    study.add("moved")
    status, text = study.push()
    assert status == 0, text
    (sweep,) = server.sweeps.values()
    assert sweep.prior == ["whole"]
    assert {run.sweep for run in server.runs.values()} == {sweep.name}
    study.assert_whole("moved")
    for lost in (False, True):
        del server.seen[:]
        if lost:
            (study.folder / "study" / "pushed.json").unlink()
        status, text = study.push()
        assert status == 0, text
        assert f"/{sweep.name}" in text
        assert server.changes() == []
    status, text = study.push(WANDB_PROJECT="other")
    assert status == 2
    assert "pushed.json" in text
    assert len(text.splitlines()) == 1


@pytest.mark.slow
def test_without_the_data_all_but_the_mistakes_arrives(study, server):
    moved = study.add("moved")
    config = (moved / "config.yaml").read_text()
    data_dir = yaml.safe_load(config)["data_dir"]
    (moved / "config.yaml").write_text(config.replace(data_dir, "/nowhere"))
    for seen in ({"CreateArtifact", "UpsertSweep"}, set()):  # the second has nothing to do
        del server.seen[:]
        status, text = study.push()
        assert status == 1
        (line,) = (line for line in text.splitlines() if line.startswith("moved:"))
        assert "not there: the table of mistakes (" in line
        assert "/nowhere is not here" in line
        assert seen <= set(server.changes())
        assert seen or server.changes() == []
    (model,) = (one for one in server.artifacts.values() if one.type == "model")
    assert model.files["best.pt"] == (moved / "best.pt").read_bytes()
    (moved / "config.yaml").write_text(config)
    status, text = study.push()
    assert status == 0, text
    study.assert_whole("moved")


@pytest.mark.slow
def test_epochs_that_no_record_has_come_from_the_history(study, server):
    moved = study.add("moved")
    first, _ = sorted((moved / "wandb").glob("offline-run-*"))
    shutil.rmtree(first)
    status, text = study.push()
    assert status == 0, text
    assert "logged again: the epochs" in text
    run, (one, two) = server.runs["moved"], history(moved)
    assert sorted(row["epoch"] for row in run.history if "val/acc" in row) == [1, 2]
    (again,) = (row for row in run.history if row.get("epoch") == 1 and "val/acc" in row)
    assert {key: again[key] for key in one} == {key: float(one[key]) for key in one}
    assert run.summary["val/acc"] == float(two["val/acc"])


@pytest.mark.slow
def test_failed_runs(study, server, start):
    """One that failed after an epoch counts for the search; one that failed before has no value."""
    study.add("whole")
    study.state("whole", state="failed")  # its record says otherwise
    patch = """
import learner
real = learner.Learner._loss
learner.Learner._loss = lambda self, *given: real(self, *given) * float("nan")
"""
    early = start(study.folder, "early", patch, env=OFFLINE, epochs=1, mistakes=4)
    assert early.wait() == 1
    study.is_trial(early.folder)
    study.is_trial(study.folder / "runs" / "gone", "failed")
    status, text = study.push()
    assert status == 0, text
    assert [run.state for run in server.runs.values()] == ["failed", "failed"]
    assert sum("val/acc" in row for row in server.runs["whole"].history) == 1
    (sweep,) = server.sweeps.values()
    assert sweep.prior == ["whole"]
    assert "ended before an epoch, so not given to the sweep: early" in text
    assert "left out, for want of a config.yaml or a summary.json: gone" in text


def test_two_pushes_at_once_are_refused(study):
    study.add("whole")
    with open(study.folder / "study" / ".pushed.json.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, text = study.push()
    assert status == 2
    assert "another process" in text
