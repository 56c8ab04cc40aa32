"""train.py as processes: its files, its mistakes, and what W&B's client records of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import EPOCHS, all_files
from ending import in_one_line
from measures import METRICS
from runs import (
    Run,
    assert_same_bits,
    exit_code,
    history,
    history_lines,
    offline_record,
    summary,
)

# What a sweep may be judged by is what a run logs; `pixels` where the images grow.
ROWS = [key for key in METRICS if key != "pixels"]
FIGURES = [
    "augmented.png",
    "classes.png",
    "confusions.png",
    "curves.png",
    "gradcam.jpg",
    "mistakes.png",
    "strengths.png",
]


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
    assert exit_code(undisturbed) == 0
    assert '"val/acc"' in json.dumps([r for r in record if r["type"] == "summary"])


def test_the_same_call_gives_the_same_bits_with_any_number_of_workers(start, tmp_path, undisturbed):
    run = start(tmp_path, workers=0)
    assert run.wait() == 0, run.text
    assert_same_bits(run.folder, undisturbed)


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


def test_batches_of_one_image_that_leave_maps_of_one_pixel(start, tmp_path):
    run = start(tmp_path, model="resnet18", image_size=8, batch_size=1, epochs=1, mistakes=0)
    assert run.wait() == 2
    (line,) = run.text.splitlines()
    assert "model 'resnet18' does not fit images of 8 px: Expected more than 1 value" in line


@pytest.mark.parametrize("before", ["a whole run", "a finished one", "a mistake"])
def test_main_can_be_called_again_in_a_process(start, shapes_dir, tmp_path, before):
    """W&B's client keeps the settings that it began with."""
    small = {"dataset": "shapes", "data_dir": str(shapes_dir), "model": "small", "image_size": 16}
    small |= {"epochs": 1, "workers": 0, "mistakes": 0, "output_dir": str(tmp_path / "runs")}
    small |= {"batch_size": 16, "max_lr": 0.05}
    if before == "a finished one":
        assert start(tmp_path, run_id="before", **small).wait() == 0
    if before == "a mistake":
        small["center_crop"] = 99
    patch = f"""
import cli, config
try:
    assert train.main(config.Config(**{small}), "before")["state"] == "finished"
except cli.Mistake as mistake:
    assert "center_crop" in str(mistake)
assert not {{"WANDB_DIR", "WANDB_DATA_DIR"}} & set(os.environ)
"""
    run = start(tmp_path, epochs=1, patch=patch, env={"WANDB_SILENT": "false"})
    assert run.wait() == 0, run.text
    assert "environment variables will be ignored" not in run.text
    folders = [run.folder] + [tmp_path / "runs" / "before"] * (before != "a mistake")
    for folder in folders:
        (record,) = folder.glob("wandb/offline-run-*")
        assert record.name.endswith(f"-{folder.name}")


def test_another_seed_gives_other_bits(start, tmp_path, undisturbed):
    run = start(tmp_path, seed=1)
    assert run.wait() == 0, run.text
    assert history(run.folder) != history(undisturbed)


@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("inductor", marks=pytest.mark.slow)],  # which takes a minute
)
def test_compiled_there_is_one_graph_a_resolution(backend, start, tmp_path):
    patch = f"backend = '{backend}'"
    patch += """
import compiling, functools, torch, training
if backend == "eager":  # which needs no compiler
    compiling.missing = lambda device: ""
torch.compile = functools.partial(torch.compile, backend=backend)
real_end = training.Training.end
def end(self, tracker, check):
    from torch._dynamo.utils import counters
    print("graphs:", counters["stats"]["unique_graphs"])
    real_end(self, tracker, check)
training.Training.end = end
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
import compiling, cpu, torch._inductor.config
compiling.FROM_STEPS = {"cpu": 1}
cpu.has_amx = lambda: True
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
    logs = [".cache", ".cache/wandb", ".cache/wandb/logs"]  # of W&B's client
    files = [file for file in all_files(tmp_path) if not file.startswith(f"{logs[-1]}/")]
    assert [file for file in files if file not in logs] == ["FILE", "output.txt"]


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
    assert exit_code(run.folder) == 1


def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(start, tmp_path):
    patch = """
import learner, torch
real = learner.Learner.train_step
def broken(self, batch):
    told = real(self, batch)
    if self.schedule.step == 14:
        with torch.no_grad():
            next(self.model.parameters()).fill_(float("nan"))
    return told
learner.Learner.train_step = broken
"""
    run = start(tmp_path, patch=patch)
    assert run.wait() == 1
    assert "error: the validation loss is nan after epoch 2; try a lower --max_lr" in run.text
    assert summary(run.folder)["epochs"] == len(history_lines(run.folder)) - 1 == 1
    again = start(tmp_path)
    assert again.wait() == 0, again.text


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
    mistakes = [  # in the sweep's parameters, or in its command: what, words of the answer
        ("max_lrr:\n  value: 1.0", {}, "max_lrr"),
        ("epochs:\n  value: 0", {}, "epochs=0"),
        ("seed:\n  value: 1", {"max_lr": 1000}, "max_lr=1000"),
        ("seed:\n  value: 1", {"max_lrr": 1}, "did you mean '--max_lr'"),
    ]
    for number, (text, flags, words) in enumerate(mistakes):
        parameters.write_text(f"wandb_version: 1\n{text}\n")
        run = start(tmp_path, env=env, run_id=f"bad{number}", **flags)
        assert run.wait() == 2
        (error,) = (line for line in run.text.splitlines() if line.startswith("error:"))
        assert words in error
        assert exit_code(run.folder) == 2


@pytest.mark.parametrize("what", ["measure", "__init__"])
def test_memory_that_is_short_outside_a_run_is_one_line(
    zygote, undisturbed, shapes_dir, tmp_path, what
):
    patch = f"""
import learner
def fail(*_, **__):
    raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
learner.Learner.{what} = fail
"""
    find_lr = ["--find_lr", "--dataset=shapes", f"--data_dir={shapes_dir}", "--image_size=16"]
    arguments = [f"--evaluate={undisturbed}"] if what == "measure" else find_lr
    run = Run(zygote, tmp_path, *arguments, patch=patch, run_id="")
    assert run.wait() == 1, run.text
    assert "out of memory; try a smaller --batch_size" in run.text
    assert "Traceback" not in run.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("BlockingIOError(11, 'Resource temporarily unavailable')", "try fewer --workers"),
        ("OSError(12, 'Cannot allocate memory')", "out of memory"),
    ],
)
def test_workers_that_cannot_be_started_are_one_line(start, tmp_path, error, words):
    patch = f"""
from multiprocessing import popen_fork
def fail(*_):
    raise {error}
popen_fork.Popen._launch = fail
"""
    run = start(tmp_path, epochs=1, workers=2, patch=patch)
    assert run.wait() == 1, run.text
    assert words in run.text
    assert "Traceback" not in run.text


def test_who_has_seen_enough_is_told_nothing():
    with pytest.raises(BrokenPipeError), in_one_line(Path("runs/x")):
        raise BrokenPipeError
