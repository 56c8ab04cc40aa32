"""Several processes of one run: the samples and numbers of one, one tracked run, and every end.

They start train.py as torchrun would, by its environment, from the process that has imported
everything; torchrun's own doings are in test_torchrun.py.
"""

import json
import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import data
import report_sections
from augment import Augmentation
from collection import read_run
from conftest import run
from loader import epoch_of, train_loader, val_loader
from ranks import Ranks
from report_findings import Findings
from runs import assert_same_bits, exit_code, history, history_lines, offline_record, summary

LAYER_NORM = {"model": "convnext_atto", "image_size": 32, "batch_size": 33, "optimizer": "adamw"}
LAYER_NORM |= {"max_lr": 0.001, "epochs": 2, "amp": "false"}  # rounding would hide other numbers
RESNET = {"model": "resnet18", "epochs": 2, "batch_size": 50, "workers": 1, "amp": "false"}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Together:
    """Some processes of a run; `folder` is what they leave."""

    def __init__(self, start, base: Path, world: int, env: dict | None = None, **flags):
        port = free_port()
        self.runs = []
        for rank in range(world):
            told = {
                "TORCHELASTIC_RUN_ID": "test",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **(env or {}),
            }
            # A folder of its own, so that it is seen if the others write anything.
            self.runs.append(start(base / str(rank), env=told, **flags))
        self.folder = self.runs[0].folder

    def wait(self) -> list[int]:
        return [run.wait() for run in self.runs]

    @property
    def text(self) -> str:
        return "\n".join(f"[{i}] {run.text}" for i, run in enumerate(self.runs))


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory) -> Path:
    run = start(tmp_path_factory.mktemp("alone"), **LAYER_NORM)
    assert run.wait() == 0, run.text
    return run.folder


@pytest.fixture(scope="module")
def three(start, tmp_path_factory) -> Path:
    """An undisturbed run of three processes: two add up alike in any order."""
    group = Together(start, tmp_path_factory.mktemp("three"), 3, **RESNET)
    assert group.wait() == [0, 0, 0], group.text
    return group.folder


@pytest.mark.parametrize("mixing", [{}, {"cutmix": 0.5, "mixup": 0.5}])
@pytest.mark.parametrize("world", [2, 3])
def test_the_samples_of_a_batch_are_the_same_for_any_number_of_processes(world, mixing, shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    augmentation = Augmentation(crop_padding=4, flip=0.5, rotate_degrees=5, **mixing)

    def batches(ranks: Ranks) -> list:
        return list(epoch_of(train_loader(loaded, augmentation, 49, seed=0, ranks=ranks), 3))

    whole = batches(Ranks())
    parts = zip(*(batches(Ranks(rank, world)) for rank in range(world)), strict=True)
    assert len(whole[-1].labels) == 2  # so one of three has none
    if mixing:
        assert any((batch.share < 1).any() for batch in whole)
    for batch, shared in zip(whole, parts, strict=True):
        assert len(shared[0].labels) > 0
        for name in ("images", "labels", "partners", "share"):
            joined = torch.cat([getattr(part, name) for part in shared])
            assert torch.equal(getattr(batch, name), joined), name
        assert {(part.start, part.whole) for part in shared} == {(batch.start, len(batch.labels))}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_validation_image_is_measured_once(world, shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    each = [list(val_loader(loaded, 16, ranks=Ranks(rank, world))) for rank in range(world)]
    assert len({len(batches) for batches in each}) == 1  # all go in step
    found = [
        (batch.start + i, label)
        for batches in each
        for batch in batches
        for i, label in enumerate(batch.labels.tolist())
    ]
    assert sorted(found) == list(enumerate(loaded.labels[loaded.val].tolist()))


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_history_of_one_process(world, start, alone, tmp_path):
    """The last batch has one image, so that all but the first process have none of it."""
    group = Together(start, tmp_path, world, **LAYER_NORM)
    assert group.wait() == [0] * world, group.text
    assert_same_history(group.folder, alone)


def test_the_history_of_one_process_with_batch_norm(three, start, tmp_path):
    one = start(tmp_path, **RESNET)
    assert one.wait() == 0, one.text
    assert_same_history(three, one.folder)


def assert_same_history(several: Path, one: Path) -> None:
    for row, expected in zip(history(several), history(one), strict=True):
        assert row.keys() == expected.keys()
        for key in expected:
            counts = "acc" in key or "top5" in key or "pointing" in key
            near = 1.1 / 40 if counts else 1e-6  # one of 40 validation images
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=2e-3, abs=near), key


def test_one_run_is_kept_and_tracked_whole(three, shapes_dir):
    assert [row["epoch"] for row in history(three)] == ["1", "2"]
    loaded = data.load("shapes", shapes_dir)
    with np.load(three / "predictions.npz") as told:
        np.testing.assert_array_equal(told["index"], loaded.val)
        np.testing.assert_array_equal(told["true"], loaded.labels[loaded.val])
        right = (told["true"] == told["predicted"]).mean()
        assert right == summary(three)["best_val_acc"]
        counted = ~np.isnan(told["cam_energy"])
        best = history(three)[summary(three)["best_epoch"] - 1]
        assert counted.sum() == int(best["val/cam_images"])
    record = offline_record(three)
    assert sum(r["type"] == "run" for r in record) == 1
    text = json.dumps([r["history"] for r in record if r["type"] == "history"])
    assert text.count('"val/acc"') == 2
    others = three.parents[2] / "1"
    assert [path.name for path in others.iterdir() if path.name != "output.txt"] == []
    about = json.loads((three / "about.json").read_text())
    assert about["starts"][0]["processes"] == 3
    assert about["starts"][0]["command"].startswith("torchrun --nproc_per_node=3 train.py --")
    (entry,) = Findings.of([read_run(three)]).entries
    assert report_sections.machine(entry).endswith("cores, 3 processes")


def test_one_process_measures_the_same_of_it(three, start, shapes_dir, tmp_path):
    """Also with what batch norm keeps."""
    done = run("train.py", f"--evaluate={three}", f"--data_dir={shapes_dir}")
    assert done.returncode == 0, done.stderr
    for line, row in zip(
        done.stdout.splitlines(),
        (history(three)[summary(three)["best_epoch"] - 1], history(three)[-1]),
        strict=True,
    ):
        for key, value in re.findall(r"(val/\w+) ([\d.e-]+)", line):
            assert f"{float(row[key]):.7g}" == value, key


@pytest.mark.fault("several processes: one killed, or a signal")
def test_killed_and_gone_on_with_to_the_same_bits(three, start, tmp_path):
    begun = Together(start, tmp_path, 3, **RESNET)
    begun.runs[0].until_epoch(1)
    before = history_lines(begun.folder)[:2]
    begun.runs[1].kill()
    assert [begun.runs[rank].wait() for rank in (0, 2)] == [1, 1]
    assert summary(begun.folder)["state"] == "failed"
    assert "another process of this run has ended" in begun.runs[0].text
    assert "Traceback" not in begun.runs[0].text
    assert exit_code(begun.folder) == 1
    again = Together(start, tmp_path, 3, **RESNET)
    assert again.wait() == [0, 0, 0], again.text
    assert history_lines(again.folder)[:2] == before
    assert_same_bits(again.folder, three)


@pytest.mark.fault("several processes: one killed, or a signal")
def test_begun_by_two_ended_by_one(start, tmp_path):
    both = Together(start, tmp_path, 2, epochs=4)
    both.runs[0].until_epoch(1)
    os.kill(both.runs[0].pid, signal.SIGUSR1)  # one is enough
    assert both.wait() == [143, 0], both.text
    assert summary(both.folder)["state"] == "preempted"
    begun = len(history_lines(both.folder)) - 1
    assert 1 <= begun < 4
    one = start(tmp_path / "0", epochs=4)
    assert one.wait() == 0, one.text
    assert [row["epoch"] for row in history(one.folder)] == ["1", "2", "3", "4"]


def test_the_parameters_of_a_sweep_reach_all(start, tmp_path):
    """Otherwise the second process would train one epoch less, and the first wait for it."""
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({"epochs": {"value": 2}, "max_lr": {"value": 0.02}}))
    both = Together(
        start, tmp_path, 2, env={"WANDB_SWEEP_PARAM_PATH": str(given)}, epochs=1, model="small"
    )
    assert both.wait() == [0, 0], both.text
    assert len(history(both.folder)) == 2
    assert yaml.safe_load((both.folder / "config.yaml").read_text())["max_lr"] == 0.02


def test_a_loss_that_is_not_finite_ends_all(start, tmp_path):
    both = Together(start, tmp_path, 2, max_lr=100, optimizer="sgd", momentum=0.99, l1=1)
    assert both.wait() == [1, 1], both.text
    assert re.search(r"error: the (validation )?loss is (nan|inf)", both.runs[0].text)
    assert "error" not in both.runs[1].text  # it is said once
    assert summary(both.folder)["state"] == "failed"


def test_a_finished_run_stays_as_it_is(three, start):
    before = {path: path.stat().st_mtime_ns for path in three.rglob("*") if path.is_file()}
    again = Together(start, three.parents[2], 2, **RESNET)
    assert again.wait() == [0, 0], again.text
    assert "nothing to do" in again.runs[0].text
    after = {path: path.stat().st_mtime_ns for path in three.rglob("*") if path.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"max_lr": -1}, "max_lr"),
        ({"data_dir": "/nowhere", "dataset": "tiny-imagenet"}, "/nowhere"),
        ({"device": "mps"}, "several processes need"),
        ({"batch_size": 1}, "batches of 1 images are too few for 2 processes"),
    ],
)
def test_a_mistake_is_said_once(flags, words, start, tmp_path):
    both = Together(start, tmp_path, 2, **flags)
    assert both.runs[0].wait() == 2
    assert words in both.runs[0].text
    assert both.runs[1].wait() != 0
    assert "error" not in both.runs[1].text
    assert not both.folder.exists()


@pytest.mark.parametrize("by_all", [True, False])
def test_a_mistake_that_the_second_process_alone_meets_is_told(monkeypatch, capsys, by_all):
    import cli

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(cli, "SAID_WITHIN_S", 0.0)

    def fail(_):
        mistake = cli.Mistake("device=cuda:1 cannot be used here")
        mistake.said_by_all = by_all
        raise mistake

    with pytest.raises(SystemExit) as ended:
        cli.run(fail)
    assert ended.value.code == 2
    told = "" if by_all else "error: device=cuda:1 cannot be used here\n"
    assert capsys.readouterr().err == told
