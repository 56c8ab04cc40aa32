"""Disks that are full or become read-only, and files that vanish: one clear line, the last good
checkpoint intact, and once there is room the same call goes on to the same bits.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoint
import records
from conftest import all_files
from runs import PAUSES, assert_same_bits, history_lines, summary

EPOCHS = 3


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> Path:
    run = start(tmp_path_factory.mktemp("undisturbed"), epochs=EPOCHS)
    assert run.wait() == 0, run.text
    return run.folder


# Fill the disk when a file of this name is written for the so-manieth time.
FULL = """
import pathlib, run_folder
real_writing, seen = run_folder.writing, []
def writing(path):
    seen.append(path.name)
    if path.name == "NAME" and seen.count("NAME") == TIME:
        with open("DISK/ballast", "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError:
                pass
    return real_writing(path)
for module in MODULES:
    __import__(module).writing = writing
"""


def full(disk: Path, name: str, time_: int) -> str:
    text = FULL.replace("NAME", name).replace("TIME", str(time_)).replace("DISK", str(disk))
    return text.replace("MODULES", '("run_folder", "viz")')


def assert_one_line(run, *words: str) -> None:
    errors = [line for line in run.text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, run.text
    assert "Traceback" not in run.text, run.text
    for word in words:
        assert word in errors[0], run.text


CASES = {  # what is written when the disk is full: the so-manieth time, epochs that are whole then
    "config.yaml": (1, 0),
    ".predictions.npz.1": (1, 0),
    ".best.pt.1": (1, 0),
    "last.pt": (2, 1),
    "history.csv": (2, 2),
    "gradcam.jpg": (2, 2),
    "curves.png": (1, 3),
}
QUICK = ("last.pt",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_a_full_disk(name, start, disk, tmp_path, undisturbed, fault):
    time_, whole = CASES[name]
    folder = disk / "run"
    with fault(f"disk full at {name}"):
        run = start(tmp_path, patch=full(disk, name, time_), output_dir=disk, epochs=EPOCHS)
        assert run.wait() == 1, run.text
        assert_one_line(run, "disk full", "make room")
        if whole:
            state = checkpoint.load(folder / "last.pt", checkpoint.KEYS)
            assert state["epoch"] == whole
        lines = history_lines(folder)
        (disk / "ballast").unlink()
        assert not list(folder.rglob("*.tmp"))
        again = start(tmp_path, output_dir=disk, epochs=EPOCHS)
        assert again.wait() == 0, again.text
        assert history_lines(folder)[: len(lines)] == lines
        assert_same_bits(folder, undisturbed)
        assert summary(folder)["state"] == "finished"


def fill(disk: Path) -> Path:
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            pass
    return disk / "ballast"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at the start", "in mid-run"])
def test_a_full_disk_under_w_and_b_alone(when, start, disk, tmp_path, undisturbed, fault):
    """The training is not W&B's: it ends as if nothing were."""
    with fault(f"disk full at W&B's files, {when}"):
        if when == "at the start":
            fill(disk)
        run = start(tmp_path, env={"WANDB_DIR": str(disk)}, epochs=EPOCHS)
        if when == "in mid-run":
            run.until_epoch(1)
            fill(disk)
        assert run.wait() == 0, run.text
        assert summary(run.folder)["state"] == "finished"
        assert "Traceback" not in run.text, run.text
        assert_same_bits(run.folder, undisturbed)


@pytest.mark.slow
def test_a_read_only_disk(start, disk, tmp_path, fault):
    """Before a run, and before its resumption. (While a run has files open, Linux lets nobody make
    its disk read-only.)
    """
    run = start(tmp_path, patch=PAUSES["training"], output_dir=disk, epochs=EPOCHS)
    run.until(lambda: len(history_lines(disk / "run")) > 1 or run.ended)
    run.kill()
    time.sleep(3)  # W&B's service closes its files
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    files = all_files(disk)
    for run_id in ("run", "another"):
        with fault("a read-only disk"):
            run = start(tmp_path, output_dir=disk, epochs=EPOCHS, run_id=run_id)
            assert run.wait() in (1, 2), run.text
            assert_one_line(run, str(disk))
            assert all_files(disk) == files


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last.pt", "history.csv", "config.yaml", "wandb"])
def test_a_file_that_vanishes_in_mid_run(name, start, tmp_path, undisturbed, fault):
    """What is still to come is written again; the rest is nobody's loss."""
    with fault(f"{name} vanishes"):
        run = start(tmp_path, patch=PAUSES["training"], epochs=EPOCHS)
        run.until(lambda: len(history_lines(run.folder)) > 1 or run.ended)
        remove(run.folder / name)
        assert run.wait() == 0, run.text
        assert "Traceback" not in run.text, run.text
        assert summary(run.folder)["state"] == "finished"
        assert len(history_lines(run.folder)) == EPOCHS + 1
        if name in ("history.csv", "wandb"):
            assert_same_bits(run.folder, undisturbed)


@pytest.mark.slow
def test_the_best_weights_vanish(start, tmp_path, fault):
    """Nothing else has them: that is said, and nothing is made up."""
    with fault("best.pt vanishes"):
        patch = PAUSES["ending"]
        run = start(tmp_path, patch=patch, epochs=1)
        run.until_here()
        (run.folder / "best.pt").unlink()
        assert run.wait() == 1, run.text
        assert_one_line(run, "best.pt is missing")
        assert checkpoint.load(run.folder / "last.pt", checkpoint.KEYS)["epoch"] == 1


@pytest.mark.slow
def test_a_run_folder_that_vanishes(start, tmp_path, fault):
    with fault("the run's folder vanishes"):
        run = start(tmp_path, patch=PAUSES["training"], epochs=EPOCHS)
        run.until(lambda: len(history_lines(run.folder)) > 1 or run.ended)
        shutil.rmtree(run.folder, ignore_errors=True)
        assert run.wait() == 1, run.text
        assert_one_line(run, str(run.folder))


@pytest.mark.slow
def test_a_cache_that_vanishes_in_mid_run(start, shapes_dir, tmp_path, undisturbed, fault):
    with fault("the data's cache vanishes"):
        own = tmp_path / "data"
        shutil.copytree(shapes_dir, own)
        run = start(tmp_path, patch=PAUSES["training"], epochs=EPOCHS, data_dir=own)
        run.until(lambda: len(history_lines(run.folder)) > 1 or run.ended)
        for cache in (own / ".cache").iterdir():
            remove(cache)
        assert run.wait() == 0, run.text  # what is mapped stays
        assert_same_bits(run.folder, undisturbed)


@pytest.mark.slow
def test_the_last_record_of_w_and_b_is_whole_after_a_full_disk(start, disk, tmp_path, fault):
    with fault("disk full, then W&B's record"):
        patch = full(disk, "last.pt", 2)
        run = start(tmp_path, patch=patch, output_dir=disk, epochs=EPOCHS)
        assert run.wait() == 1
        (disk / "ballast").unlink()
        time.sleep(1.1)  # a record's name has the second
        again = start(tmp_path, output_dir=disk, epochs=EPOCHS)
        assert again.wait() == 0, again.text
        kept = [records.read_rows(one) for one in records.of_run(disk / "run" / "wandb", "run")]
        epochs = [row["epoch"] for rows in kept for row in rows if "val/acc" in row]
        assert sorted(epochs) == [1, 2, 3]  # also what had no room the first time
        assert [f for f in all_files(disk / "run") if f.endswith(".tmp")] == []
