"""train.py ended in every way, and called again: by kill -9, by signals, in each of its phases."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import all_files
from runs import (
    PAUSES,
    assert_same_bits,
    exit_code,
    history,
    history_lines,
    offline_record,
    summary,
)

MEASURED = """
import checkpoint, dataclasses, signal
real_evaluate, real_save = train.evaluate, checkpoint.save
def evaluate(*arguments):
    measured = real_evaluate(*arguments)
    return dataclasses.replace(measured, predicted=PREDICTED)
def save(state, file):
    if "optimizer" in state and state["epoch"] == KILL_IN:
        os.kill(os.getpid(), signal.SIGKILL)
    real_save(state, file)
train.evaluate, checkpoint.save = evaluate, save
"""


@pytest.mark.fault("kill between best.pt and last.pt")
def test_an_epoch_that_comes_out_otherwise_the_second_time(start, tmp_path):
    """As it does on a GPU: killed with a new best epoch half kept, done again as none."""
    all_right = MEASURED.replace("PREDICTED", "measured.true").replace("KILL_IN", "1")
    all_wrong = MEASURED.replace("PREDICTED", "(measured.true + 1) % 10").replace("KILL_IN", "0")
    for name, epoch in (("first epoch", 1), ("second epoch", 2)):
        folder, before = tmp_path / name / "runs" / "run", None
        if epoch == 2:
            run = start(tmp_path / name, patch=PAUSES["training"], epochs=3)
            run.until_epoch(1)
            run.kill()
            before = (folder / "best.pt").read_bytes()
        patch = all_right.replace("== 1", f"== {epoch}")
        killed = start(tmp_path / name, patch=patch, epochs=3)
        assert killed.wait() == 128 + signal.SIGKILL, killed.text
        again = start(tmp_path / name, patch=all_wrong, epochs=3)
        assert again.wait() == 0, again.text
        told = summary(folder)
        assert (told["state"], told["best_epoch"], told["epochs"]) == ("finished", 1, 3)
        if before:
            assert (folder / "best.pt").read_bytes() == before
        with np.load(folder / "predictions.npz") as predictions:
            assert predictions["epoch"] == 1
        files = [file for file in all_files(folder) if not file.startswith("wandb")]
        assert [file for file in files if file.startswith(".")] == [".lock"]


SLOWLY = """
import learner, time
real_step = learner.Learner.train_step
def step(self, batch):
    time.sleep(0.1)
    return real_step(self, batch)
learner.Learner.train_step = step
"""


def test_ten_kills_change_nothing(start, tmp_path, undisturbed, fault):
    """At random moments of loading, training, measuring and writing; 2 workers all the way."""
    seed = time.time_ns()
    moments = random.Random(seed)
    after_first_epoch = 0
    lines: list[str] = []
    for kill in range(10):
        run = start(tmp_path, workers=2, patch=SLOWLY)  # an epoch is 0.7 s and more on any machine
        if kill >= 2:
            run.until_epoch(kill // 2)
        time.sleep(moments.uniform(0.0, 1.0))
        with fault("kill -9, any moment"):
            run.kill()
            assert run.wait() == 137
            assert history_lines(run.folder)[: len(lines)] == lines, seed
        lines = history_lines(run.folder)
        after_first_epoch += len(lines) > 1
    assert after_first_epoch >= 5
    run = start(tmp_path)
    assert run.wait() == 0, run.text
    assert history_lines(run.folder)[: len(lines)] == lines
    assert_same_bits(run.folder, undisturbed)
    assert not list(run.folder.glob("*.tmp"))


AVERAGED = {"ema": 0.9, "optimizer": "adamw", "cutmix": 0.5, "mixup": 0.5, "max_lr": 0.01}
CUT = {"schedule": "cyclic", "cycle_epochs": 2, "patience": 0, "label_smoothing": 0.1, "l1": 1e-5}
GROWS = {"amp": "true", "resolution_schedule": "8:0.4,12:0.8", "optimizer": "muon"}
VARIANTS = {
    "averaged weights, adamw, mixing": AVERAGED,
    "cyclic with cuts, smoothing, l1": CUT,
    "bf16, growing, muon": GROWS,
}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=() if name == "bf16, growing, muon" else pytest.mark.slow)
        for name in VARIANTS
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(start, tmp_path, variant):
    whole = start(tmp_path / "whole", epochs=3, **VARIANTS[variant])
    killed = start(tmp_path / "killed", epochs=3, **VARIANTS[variant])
    killed.until_epoch(1)
    killed.kill()
    rows = len(history_lines(killed.folder))
    again = start(tmp_path / "killed", epochs=3, **VARIANTS[variant])
    assert (whole.wait(), again.wait()) == (0, 0), again.text
    assert 2 <= rows <= 4
    assert_same_bits(again.folder, whole.folder)


def test_a_history_that_a_kill_kept_behind_is_completed(start, tmp_path):
    run = start(tmp_path)
    run.until_epoch(2)
    run.kill()
    path = run.folder / "history.csv"
    lines = history_lines(run.folder)
    path.write_text("\n".join(lines[:-1]) + "\n")  # last.pt was written, history.csv was not
    again = start(tmp_path)
    assert again.wait() == 0, again.text
    assert history_lines(run.folder)[: len(lines)] == lines


def stamps(folder: Path) -> dict:
    """Time of change and size of every file but the lock."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.name != ".lock"}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def test_a_finished_run_is_left_alone(start, tmp_path):
    run = start(tmp_path, epochs=1)
    assert run.wait() == 0
    before = stamps(run.folder)
    again = start(tmp_path, epochs=1)
    assert again.wait() == 0
    assert "is finished: nothing to do" in again.text
    assert stamps(run.folder) == before
    again = start(tmp_path, epochs=1, data_dir=tmp_path / "nowhere")
    assert again.wait() == 0, again.text
    assert stamps(run.folder) == before
    other = start(tmp_path, epochs=1, max_lr=0.07)
    assert other.wait() == 2 and "max_lr=0.07" in other.text
    # All epochs done but no summary: only the ending is done again.
    (run.folder / "summary.json").unlink()
    lines = history_lines(run.folder)
    again = start(tmp_path, epochs=1)
    assert again.wait() == 0
    assert history_lines(run.folder) == lines
    assert summary(run.folder)["state"] == "finished"
    assert "epoch 1/1" not in again.text


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
ENDS = [  # signal, in a sweep, where -> exit status, state, exit code in W&B
    (TERM, False, "training", 143, "preempted", 143),
    (TERM, True, "training", 0, "stopped", 0),
    (TERM, True, "pictures", 0, "stopped", 0),
    (USR1, True, "evaluation", 143, "preempted", 143),
    (INT, False, "evaluation", 130, "interrupted", 255),
]
MORE_ENDS = [
    (TERM, False, "ending", 143, "preempted", 143),
    (INT, False, "pictures", 130, "interrupted", 255),
    (TERM, True, "evaluation", 0, "stopped", 0),
    (USR1, False, "training", 143, "preempted", 143),
    (INT, False, "training", 130, "interrupted", 255),
    (INT, False, "ending", 130, "interrupted", 255),
    (INT, True, "training", 130, "interrupted", 255),
]


@pytest.mark.parametrize(
    ("number", "sweep", "where", "status", "state", "code"),
    [*ENDS, *(pytest.param(*end, marks=pytest.mark.slow) for end in MORE_ENDS)],
)
@pytest.mark.fault("SIGTERM, SIGUSR1, Ctrl-C, in each phase")
def test_an_end_before_the_time(start, tmp_path, number, sweep, where, status, state, code):
    epochs = 1 if where in ("ending", "pictures") else 3
    env = {}
    if sweep:
        (tmp_path / "parameters.yaml").write_text("wandb_version: 1\nmax_lr:\n  value: 0.02\n")
        env = {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "parameters.yaml")}
    run = start(tmp_path, patch=PAUSES[where], env=env, epochs=epochs, workers=2)
    run.until_here()
    asked = time.monotonic()
    run.signal_group(number)
    assert run.wait() == status, run.text
    assert time.monotonic() - asked < 10
    assert "Traceback" not in run.text
    told = summary(run.folder)
    assert told["state"] == state
    record = offline_record(run.folder)
    assert exit_code(run.folder) == code
    assert any(r["type"] == "preempting" for r in record) == (state == "preempted")
    # The same call goes on and ends with the bits of a run that was never disturbed.
    again = start(tmp_path, env=env, epochs=epochs)
    assert again.wait() == 0, again.text
    assert summary(run.folder)["state"] == "finished"
    assert len(history(run.folder)) == epochs
    if sweep:
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["max_lr"] == 0.02


# The workers' end comes while the signal's handler is at work.
HANDLED_SLOWLY = """
import ending, time
real_on_term = ending.Ending._on_term
def slow(self, *arguments):
    time.sleep(0.5)
    real_on_term(self, *arguments)
ending.Ending._on_term = slow
"""


@pytest.mark.fault("SIGTERM, SIGUSR1, Ctrl-C, in each phase")
def test_a_signal_counts_though_workers_end_while_it_is_handled(start, tmp_path):
    run = start(tmp_path, patch=PAUSES["training"] + HANDLED_SLOWLY, epochs=3, workers=2)
    run.until_here()
    run.signal_group(TERM)
    assert run.wait() == 143, run.text
    assert "Traceback" not in run.text
    assert summary(run.folder)["state"] == "preempted"


KILLS_A_WORKER = """
import learner, multiprocessing
real_step = learner.Learner.train_step
def step(self, batch):
    os.kill(multiprocessing.active_children()[0].pid, 9)
    return real_step(self, batch)
learner.Learner.train_step = step
"""


@pytest.mark.fault("kill of a loader's worker")
def test_a_worker_that_is_killed_is_one_line(start, tmp_path):
    run = start(tmp_path, patch=KILLS_A_WORKER, workers=2)
    assert run.wait() == 1, run.text
    (line,) = (line for line in run.text.splitlines() if line.startswith("error: "))
    assert "DataLoader worker" in line and "fewer --workers take less memory" in line
    assert "Traceback" not in run.text
    assert summary(run.folder)["state"] == "failed"


def test_the_first_request_decides(start, tmp_path):
    run = start(tmp_path, patch=PAUSES["training"])
    run.until_here()
    run.signal(USR1)
    time.sleep(0.1)  # of two that wait together, the one with the lower number would come first
    run.signal(INT)
    assert run.wait() == 143
    assert summary(run.folder)["state"] == "preempted"


@pytest.fixture
def begun(start, tmp_path) -> Path:
    """The folder of a run that was killed after its first epoch."""
    run = start(tmp_path, epochs=3)
    run.until_epoch(1)
    run.kill()
    return run.folder


class Evil:
    """What a pickle can do where it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (self.path.write_text, ("evil",))


# By hand, or by an editor that was stopped: what nothing of ours writes.
DAMAGED = {"config.yaml": (b"max_lr: [", b"- 1\n"), "about.json": (b"{",)}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_place_that_is_taken(start, tmp_path, kind):
    folder = tmp_path / "runs" / "run"
    folder.parent.mkdir()
    if kind == "folder":
        folder.mkdir()
        run, words = start(tmp_path, resume="never"), "is there and resume=never"
    else:
        folder.touch()
        run, words = start(tmp_path), "is a file; give another --run_id"
    assert run.wait() == 2
    assert run.text == f"error: {folder} {words}{'; give another --run_id' * (kind == 'folder')}\n"
    assert not (folder.is_dir() and list(folder.iterdir()))


def test_what_a_begun_run_refuses(start, begun, tmp_path):
    """Another config, resume=never, and checkpoints that are damaged, foreign or hostile."""
    whole = (begun / "last.pt").read_bytes()
    lines = history_lines(begun)

    def refused(*words, **changed):
        run = start(tmp_path, **{"epochs": 3, **changed})
        assert run.wait() == 2, run.text
        assert 1 <= len(run.text.splitlines()) <= 2, run.text
        for word in words:
            assert word in run.text
        assert history_lines(begun) == lines

    refused("max_lr=0.05", "max_lr=0.06", max_lr=0.06)
    refused("epochs=3", "epochs=4", epochs=4)
    refused("resume=never", resume="never")
    for name, contents in DAMAGED.items():
        before = (begun / name).read_bytes()
        for content in contents:
            (begun / name).write_bytes(content)
            refused(name)
        (begun / name).write_bytes(before)
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"no checkpoint"):
        (begun / "last.pt").write_bytes(content)
        refused("last.pt", "damaged")
    torch.save({"model": Evil(tmp_path / "evil")}, begun / "last.pt")
    refused("last.pt", "damaged")
    assert not (tmp_path / "evil").exists()
    torch.save({"model": {}}, begun / "last.pt")
    refused("last.pt", "no checkpoint of this program")
    other = torch.load(begun / "best.pt", weights_only=True)
    (begun / "last.pt").write_bytes(whole)
    state = torch.load(begun / "last.pt", weights_only=True)
    torch.save({**state, "config": {**other["config"], "seed": 7}}, begun / "last.pt")
    refused("last.pt", "seed=7")
    torch.save({**state, "split": "another"}, begun / "last.pt")
    refused("last.pt", "split another", "other images")
    torch.save({**state, "order": "another"}, begun / "last.pt")
    refused("last.pt", "another order")
    (begun / "last.pt").write_bytes(whole)
    again = start(tmp_path, epochs=3, workers=0, mistakes=3)  # these may differ
    assert again.wait() == 0, again.text
    assert history_lines(begun)[: len(lines)] == lines


def test_a_second_process_on_the_same_run_is_refused(start, tmp_path):
    run = start(tmp_path, patch=PAUSES["training"])
    run.until_here()
    second = start(tmp_path)
    assert second.wait() == 2
    assert "in use by another process" in second.text
    run.signal(USR1)
    assert run.wait() == 143
