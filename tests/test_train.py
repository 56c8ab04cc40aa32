"""train.py as processes: its files, resuming after any end, and what W&B's client records of it."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import EPOCHS, all_files
from measures import METRICS
from record import _write_npz
from runs import (
    PAUSES,
    Run,
    assert_same_bits,
    history,
    history_lines,
    offline_record,
    summary,
)

ROWS = list(METRICS)  # what a sweep may be judged by is what a run logs
FIGURES = [
    "augmented.png",
    "classes.png",
    "confusions.png",
    "curves.png",
    "gradcam.jpg",
    "mistakes.png",
    "strengths.png",
]


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> Path:
    run = start(tmp_path_factory.mktemp("undisturbed"), workers=2)
    assert run.wait() == 0, run.text
    return run.folder


def test_files_of_a_run(undisturbed):
    files = [file for file in all_files(undisturbed) if not file.startswith("wandb")]
    assert files == [
        ".lock",
        "about.json",
        "best.pt",
        "config.yaml",
        "figures",
        *(f"figures/{name}" for name in FIGURES),
        "history.csv",
        "last.pt",
        "predictions.npz",
        "summary.json",
    ]
    rows = history(undisturbed)
    assert history_lines(undisturbed)[0].split(",") == ROWS
    assert [row["epoch"] for row in rows] == [str(e) for e in range(1, EPOCHS + 1)]
    told = summary(undisturbed)
    assert told["state"] == "finished"
    assert told["epochs"] == EPOCHS
    accuracies = [float(row["val/acc"]) for row in rows]
    assert told["best_val_acc"] == max(accuracies)
    assert told["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert told["val/acc"] == accuracies[-1]
    config = yaml.safe_load((undisturbed / "config.yaml").read_text())
    assert config["max_lr"] == 0.05
    assert config["model"] == "small"
    best = torch.load(undisturbed / "best.pt", weights_only=True)
    assert best["epoch"] == told["best_epoch"]
    assert best["config"] == config


def test_predictions_are_those_of_the_best_epoch(undisturbed, shapes_dir):
    import data

    loaded = data.load("shapes", shapes_dir)
    with np.load(undisturbed / "predictions.npz") as told:
        assert told["fingerprint"] == loaded.fingerprint
        np.testing.assert_array_equal(told["index"], loaded.val)
        np.testing.assert_array_equal(told["true"], loaded.labels[loaded.val])
        assert [name.decode() for name in told["file"]] == [loaded.file(i) for i in loaded.val]
        right = (told["true"] == told["predicted"]).mean()
        assert right == summary(undisturbed)["best_val_acc"]
        assert ((told["confidence"] > 0.1) & (told["confidence"] <= 1)).all()
        best = history(undisturbed)[summary(undisturbed)["best_epoch"] - 1]
        for name in ("cam_energy", "cam_pointing"):
            assert len(told[name]) == len(loaded.val)
            assert np.nanmean(told[name]) == pytest.approx(float(best[f"val/{name}"]), rel=1e-5)
        assert (~np.isnan(told["cam_energy"])).sum() == int(best["val/cam_images"])


def test_what_w_and_b_has(undisturbed):
    record = offline_record(undisturbed)
    (began,) = (r["run"] for r in record if r["type"] == "run")
    assert began["project"] == "tinysweep"
    assert began["display_name"] == "lr0.05-aug1"
    rows = [r["history"] for r in record if r["type"] == "history"]
    text = json.dumps(rows)
    for key in (*ROWS[1:], "val/gradcam.size"):
        assert text.count(f'"{key}"') == EPOCHS, key
    measured = [row["item"] for row in rows if "val/acc" in row["item"]]
    assert [row["epoch"] for row in measured] == list(range(1, EPOCHS + 1))
    for key in ("curves", "val/classes", "val/confusions", "augmented", "strengths"):
        assert text.count(f'"{key}.size"') == 1, key
    (table,) = (row for row in rows if "val/mistakes" in json.dumps(row))
    assert "table-file" in json.dumps(table)
    assert any(r["type"] == "artifact" for r in record)
    assert text.count('"train/lr_step"') == 7 * EPOCHS
    (end,) = (r["exit"] for r in record if r["type"] == "exit")
    assert end.get("exit_code", 0) == 0
    assert '"val/acc"' in json.dumps([r for r in record if r["type"] == "summary"])


def test_the_same_call_gives_the_same_bits_with_any_number_of_workers(start, tmp_path, undisturbed):
    run = start(tmp_path, workers=0)
    assert run.wait() == 0, run.text
    assert_same_bits(run.folder, undisturbed)


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


def test_nobody_reads_the_output(start, tmp_path):
    closed = "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    run = start(tmp_path, patch=closed, epochs=2)
    assert run.wait() == 1, run.text
    (error,) = (line for line in run.text.splitlines() if "BrokenPipe" in line or "error" in line)
    assert "nobody reads the output" in error
    assert summary(run.folder)["state"] == "failed"
    again = start(tmp_path, epochs=2)
    assert again.wait() == 0, again.text


def test_a_last_batch_of_one_image(start, tmp_path):
    """Of 1x1 maps there are no statistics over one image: torch's batch norm would raise."""
    run = start(tmp_path, model="resnet18", image_size=8, batch_size=99, epochs=1, mistakes=0)
    assert run.wait() == 0, run.text


def test_another_seed_gives_other_bits(start, tmp_path, undisturbed):
    run = start(tmp_path, seed=1)
    assert run.wait() == 0, run.text
    assert history(run.folder) != history(undisturbed)


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
    moments = random.Random(time.time_ns())
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
            assert history_lines(run.folder)[: len(lines)] == lines
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
GROWS = {"amp": "true", "resolution_schedule": "8:0.34,12:0.67"}
VARIANTS = {
    "averaged weights, adamw, mixing": AVERAGED,
    "cyclic with cuts, smoothing, l1": CUT,
    "bf16, growing": GROWS,
}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=() if name == "bf16, growing" else pytest.mark.slow)
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


@pytest.mark.slow  # compiling takes a minute
def test_compiled_there_is_one_graph_a_resolution(start, tmp_path):
    patch = """
import job
real_end = job.Job.end
def end(self, tracker, check):
    from torch._dynamo.utils import counters
    print("graphs:", counters["stats"]["unique_graphs"])
    real_end(self, tracker, check)
job.Job.end = end
"""
    # A small rate: batch norm over the four images of the last batch amplifies rounding.
    growing = {"epochs": 2, "resolution_schedule": "8:0.5", "amp": "false", "max_lr": 1e-4}
    plain = start(tmp_path / "plain", compile="false", **growing)
    assert plain.wait() == 0, plain.text
    compiled = start(tmp_path / "compiled", compile="true", patch=patch, **growing)
    compiled.timeout_s = 300
    assert compiled.wait() == 0, compiled.text
    assert "graphs: 2" in compiled.text  # 100 images in batches of 16 leave a short one of 4
    one, two = (float(history(run.folder)[0]["train/loss"]) for run in (plain, compiled))
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.slow
def test_a_compiler_that_fails_ends_no_run_that_did_not_ask_for_it(start, tmp_path):
    broken = """
import learner, torch._inductor.config
learner.COMPILE_FROM_STEPS = {"cpu": 1}
torch._inductor.config.cpp.cxx = ("false",)
"""
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    runs = {}
    for compile in ("auto", "true"):
        runs[compile] = start(
            tmp_path / compile, epochs=1, amp="true", compile=compile, patch=broken, env=env
        )
        runs[compile].timeout_s = 300
    assert runs["auto"].wait() == 0, runs["auto"].text
    assert "WON'T CONVERT" in runs["auto"].text  # torch's warning: it was tried
    assert runs["true"].wait() == 1, runs["true"].text


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
    run.until(lambda: (tmp_path / "here").exists() or run.ended)
    asked = time.monotonic()
    run.signal_group(number)
    assert run.wait() == status, run.text
    assert time.monotonic() - asked < 10
    assert "Traceback" not in run.text
    told = summary(run.folder)
    assert told["state"] == state
    record = offline_record(run.folder)
    (end,) = (r["exit"] for r in record if r["type"] == "exit")
    assert end.get("exit_code", 0) == code
    assert any(r["type"] == "preempting" for r in record) == (state == "preempted")
    # The same call goes on and ends with the bits of a run that was never disturbed.
    again = start(tmp_path, env=env, epochs=epochs)
    assert again.wait() == 0, again.text
    assert summary(run.folder)["state"] == "finished"
    assert len(history(run.folder)) == epochs
    if sweep:
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["max_lr"] == 0.02


def test_the_first_request_decides(start, tmp_path):
    run = start(tmp_path, patch=PAUSES["training"])
    run.until(lambda: (tmp_path / "here").exists() or run.ended)
    run.signal(USR1)
    time.sleep(0.1)  # of two that wait together, the one with the lower number would come first
    run.signal(INT)
    assert run.wait() == 143
    assert summary(run.folder)["state"] == "preempted"


MISTAKES = {  # what is wrong: arguments, words of the answer
    "unknown flag": (["--max_lrr=1"], ["--max_lrr", "did you mean '--max_lr'"]),
    "unknown model": (["--model=resnet81"], ["resnet81", "did you mean", "resnet18"]),
    "model too large for the image": (["--model=vgg11", "--image_size=8"], ["vgg11", "8"]),
    "unknown device": (["--device=gpu"], ["device=gpu", "--device=auto"]),
    "no such device": (["--device=cuda:7"], ["device=cuda:7", "--device=auto"]),
    "output folder is a file": (["--output_dir=FILE/runs"], ["FILE is a file"]),
    "id leaves the folder": (["--run_id=../x"], ["'../x'"]),
    "recipe is missing": (["--config=nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    "no data": (["--dataset=tiny-imagenet"], ["data.py fetch"]),
    "not a run": (["--evaluate=nowhere"], ["nowhere", "config.yaml"]),
    "mirrored without evaluate": (["--mirrored"], ["--mirrored goes with --evaluate"]),
    "crop of more than there is": (["--center_crop=65"], ["center_crop=65", "64 px"]),
    "evaluate and another": (["--evaluate=nowhere", "--find_lr"], ["--evaluate goes with"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_no_run(zygote, shapes_dir, tmp_path, mistake):
    arguments, words = MISTAKES[mistake]
    (tmp_path / "FILE").write_text("")
    arguments = [argument.replace("FILE", str(tmp_path / "FILE")) for argument in arguments]
    base = ["--dataset=shapes", f"--data_dir={shapes_dir}", "--model=small", "--image_size=16"]
    if "--evaluate=nowhere" in arguments:
        base = []
    run = Run(zygote, tmp_path, *base, *arguments, run_id="" if not base else "run")
    assert run.wait() == 2, run.text
    assert 1 <= len(run.text.splitlines()) <= 2, run.text
    for word in words:
        assert word in run.text
    assert all_files(tmp_path) == ["FILE", "output.txt"]


@pytest.fixture
def begun(start, tmp_path) -> Path:
    """The folder of a run that was killed after its first epoch."""
    run = start(tmp_path, epochs=3)
    run.until_epoch(1)
    run.kill()
    return run.folder


def change(folder: Path, name: str, spoil) -> None:
    path = folder / name
    path.write_bytes(spoil(path.read_bytes()))


class Evil:
    def __reduce__(self):
        return (Path("/tmp/tinysweep-evil").write_text, ("evil",))


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
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"no checkpoint"):
        (begun / "last.pt").write_bytes(content)
        refused("last.pt", "damaged")
    torch.save({"model": Evil()}, begun / "last.pt")
    refused("last.pt", "damaged")
    assert not Path("/tmp/tinysweep-evil").exists()
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
    run.until(lambda: (tmp_path / "here").exists() or run.ended)
    second = start(tmp_path)
    assert second.wait() == 2
    assert "in use by another process" in second.text
    run.signal(USR1)
    assert run.wait() == 143


def test_a_loss_that_is_not_finite_ends_the_run(start, tmp_path):
    patch = """
import learner
real = learner.Learner._loss
def diverge(self, logits, batch):
    return real(self, logits, batch) * (float("nan") if self.schedule.step == 9 else 1)
learner.Learner._loss = diverge
"""
    run = start(tmp_path, patch=patch)
    assert run.wait() == 1
    (error,) = (line for line in run.text.splitlines() if line.startswith("error:"))
    for word in ("loss is nan", "epoch 2", "step 3,", "learning rate", "--max_lr"):
        assert word in error
    assert "Traceback" not in run.text
    told = summary(run.folder)
    assert (told["state"], told["epochs"]) == ("failed", 1)
    (end,) = (r["exit"] for r in offline_record(run.folder) if r["type"] == "exit")
    assert end["exit_code"] == 1


def test_what_w_and_b_raises_is_said_and_the_run_goes_on(start, tmp_path):
    patch = """
import tracking, wandb
tracking.PAUSE_S = 0.2
def fail(self, *_, **__):
    raise RuntimeError("the server is away")
wandb.Run.log_artifact = fail
def no_picture(*_, **__):
    raise RuntimeError("no picture")
wandb.Image = no_picture
real = wandb.Run.log
def sometimes(self, values, **named):
    if values.get("epoch") == 1:
        raise RuntimeError("the server is slow")
    real(self, values, **named)
wandb.Run.log = sometimes
"""
    run = start(tmp_path, patch=patch, epochs=2)
    assert run.wait() == 0, run.text
    assert (
        "W&B: the model artifact failed, the run goes on (RuntimeError: the server is away"
        in run.text
    )
    assert run.text.count("W&B: the model artifact is tried again") == 3
    assert "W&B: log failed, the run goes on (RuntimeError: the server is slow" in run.text
    assert "W&B: val/gradcam failed, the run goes on (RuntimeError: no picture" in run.text
    rows = [r for r in offline_record(run.folder) if r["type"] == "history"]
    assert json.dumps(rows).count('"val/acc"') == 1  # of epoch 2: no picture takes it along
    assert summary(run.folder)["state"] == "finished"


def test_a_sweep_decides_and_its_unknown_parameters_are_a_mistake(start, tmp_path):
    parameters = tmp_path / "parameters.yaml"
    env = {"WANDB_SWEEP_PARAM_PATH": str(parameters), "WANDB_PROJECT": "other"}
    parameters.write_text(
        "wandb_version: 1\nmax_lr:\n  value: 0.03\n"
        "batch_size:\n  value: 20.0\nflip:\n  value: false\n"
    )
    run = start(tmp_path, env=env, epochs=1)
    assert run.wait() == 0, run.text
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert (config["max_lr"], config["batch_size"], config["flip"]) == (0.03, 20, False)
    told = [r["run"] for r in offline_record(run.folder) if r["type"] == "run"]
    assert told[0]["project"] == "other"
    assert told[-1]["display_name"] == "lr0.03-aug1"
    for text, words in (("max_lrr:\n  value: 1.0", "max_lrr"), ("epochs:\n  value: 0", "epochs=0")):
        parameters.write_text(f"wandb_version: 1\n{text}\n")
        run = start(tmp_path, env=env, run_id="bad")
        assert run.wait() == 2
        (error,) = (line for line in run.text.splitlines() if line.startswith("error:"))
        assert words in error
        (end,) = (r["exit"] for r in offline_record(run.folder) if r["type"] == "exit")
        assert end["exit_code"] == 2


def test_evaluate_measures_a_finished_run_again(zygote, undisturbed, tmp_path):
    run = Run(zygote, tmp_path, f"--evaluate={undisturbed}", run_id="")
    assert run.wait() == 0, run.text
    told = summary(undisturbed)
    best, last = run.text.splitlines()
    assert f"best.pt: epoch {told['best_epoch']}," in best
    assert f"val/acc {told['best_val_acc']:.7g}," in best
    assert f"last.pt: epoch {EPOCHS}," in last
    for key in ("val/loss", "val/acc", "val/top5"):
        assert f"{key} {told[key]:.7g}," in last
    assert last.endswith("40 images")


def test_evaluate_refuses_other_images(zygote, undisturbed, tmp_path):
    """What trained the model must not measure it, nor other labels."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    arrays = dict(np.load(folder / "predictions.npz"))

    def refused(content: bytes | None = None, **changed: np.ndarray) -> str:
        with open(folder / "predictions.npz", "wb") as file:
            file.write(content) if content is not None else _write_npz(file, {**arrays, **changed})
        run = Run(zygote, tmp_path, f"--evaluate={folder}", run_id="")
        assert run.wait() == 2, run.text
        assert len(run.text.splitlines()) == 1, run.text
        return run.text

    assert "the split x" in refused(fingerprint=np.array("x"))
    assert "another order, or with other labels" in refused(true=(arrays["true"] + 1) % 10)
    for content in (b"", b"PK", (undisturbed / "predictions.npz").read_bytes()[:-30]):
        assert "predictions.npz: cannot be read" in refused(content)


def test_evaluate_averages_over_the_mirror_image(zygote, undisturbed, tmp_path):
    plain = Run(zygote, tmp_path / "plain", f"--evaluate={undisturbed}", run_id="")
    mirrored = Run(zygote, tmp_path / "m", f"--evaluate={undisturbed}", "--mirrored", run_id="")
    assert (plain.wait(), mirrored.wait()) == (0, 0), mirrored.text

    def numbers(run, key):
        return [float(x) for x in re.findall(rf"{key} ([\d.]+)", run.text)]

    assert mirrored.text.count("images, mean of image and mirror image\n") == 2
    assert numbers(mirrored, "val/loss") != numbers(plain, "val/loss")
    assert numbers(mirrored, "cam_energy") == numbers(plain, "cam_energy")  # the image's own map
