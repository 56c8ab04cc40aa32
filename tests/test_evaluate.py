"""`train.py --evaluate`: what is measured again is what was measured."""

import re
import shutil
from pathlib import Path

import numpy as np

from conftest import EPOCHS
from record import _write_npz
from runs import Run, history, summary


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


def test_an_epoch_is_measured_at_the_pixels_that_it_trained_at(start, zygote, tmp_path):
    flags = {"epochs": 3, "resolution_schedule": "8:0.67", "mistakes": 0}
    run = start(tmp_path, **flags)
    run.until_epoch(1)
    run.kill()
    small = measured_again(zygote, tmp_path / "small", run.folder)
    run = start(tmp_path, **flags)
    assert run.wait() == 0, run.text
    rows = {int(row["epoch"]): row for row in history(run.folder)}
    full = measured_again(zygote, tmp_path / "full", run.folder)
    assert small["last.pt"][0] < full["last.pt"][0] == 3
    assert [float(rows[epoch]["pixels"]) for epoch in (1, 2, 3)] == [8, 8, 16]
    assert full["best.pt"][0] == 3
    for measured, pixels in ((small, 8), (full, 16)):
        epoch, *numbers = measured["last.pt"]
        assert numbers == [f"{float(rows[epoch]['val/loss']):.7g}", str(pixels)]
    assert f"epoch 3/3 at 16 px: train loss {float(rows[3]['train/loss']):.4f}" in run.text


def measured_again(zygote, home: Path, folder: Path) -> dict[str, tuple[int, str, str]]:
    """Epoch, val/loss and pixels of the best and of the last weights."""
    again = Run(zygote, home, f"--evaluate={folder}", run_id="")
    assert again.wait() == 0, again.text
    found = re.findall(r"(\w+\.pt): epoch (\d+), val/loss ([^,]+),.* at (\d+) px", again.text)
    return {name: (int(epoch), loss, pixels) for name, epoch, loss, pixels in found}


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
