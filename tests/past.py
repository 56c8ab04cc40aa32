"""Runs as they lie in their folders when they are over, without training: for tests of reports."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from config import Config, to_dict
from record import _write_npz

CLASSES = ("disc", "square", "triangle", "ring", "heart")
FINGERPRINT = "f556ae6c2625"


def write_run(
    parent: Path,
    run_id: str,
    *,
    reached: float | None = 0.6,  # accuracy at the end; None: no metric at all
    epochs: int = 5,
    of: int | None = None,
    state: str | None = "finished",
    classes: Sequence[str] = CLASSES,
    images: int = 100,
    boxes: bool = True,
    about: bool = True,
    predictions: bool = True,
    figures: bool = False,
    fingerprint: str = FINGERPRINT,
    changed: dict[int, dict[str, float]] | None = None,  # epoch -> cells of the history
    extra: dict[str, Any] | None = None,  # keys of the config that Config does not know
    **config: Any,
) -> Path:
    folder = parent / run_id
    folder.mkdir(parents=True)
    dice = np.random.default_rng([*run_id.encode()])
    given = to_dict(Config(**{"dataset": "shapes", "epochs": of or epochs or 5, **config}))
    given |= extra or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    rows = [_row(dice, epoch, epochs, given, reached, boxes) for epoch in range(1, epochs + 1)]
    for epoch, cells in (changed or {}).items():
        rows[epoch - 1].update(cells)
    if rows:
        _write_history(folder, rows)
    if state:
        summary = {**(rows[-1] if rows else {}), "state": state, "epochs": len(rows)}
        (folder / "summary.json").write_text(json.dumps({**summary, "run_id": run_id}))
    if about:
        (folder / "about.json").write_text(json.dumps(_about(classes, images, fingerprint)))
    if predictions and reached is not None:
        _write_predictions(folder, dice, reached, len(classes), images, fingerprint, epochs)
    if figures:
        (folder / "figures").mkdir()
        for name in ("mistakes.png", "gradcam.jpg"):
            Image.fromarray(dice.integers(0, 255, (60, 160, 3), np.uint8)).save(
                folder / "figures" / name
            )
    return folder


def _row(dice, epoch: int, epochs: int, given: dict, reached: float | None, boxes: bool) -> dict:
    part = 1 - math.exp(-3 * epoch / epochs)
    row = {
        "epoch": epoch,
        "lr": given["max_lr"] * math.sin(math.pi * epoch / (epochs + 1)),
        "train/loss": 2.5 - 2 * part,
        "train/acc": 0.1 + 0.5 * part,
    }
    if reached is not None:
        row["val/loss"] = 2.6 - 1.9 * part * reached + dice.normal(0, 0.03)
        row["val/acc"] = max(reached * part + dice.normal(0, 0.01), 0.0)
        row["val/top5"] = min(row["val/acc"] + 0.2, 1.0)
        if boxes:
            row |= {"val/cam_energy": 0.3 + 0.3 * part * reached, "val/cam_images": 90}
            row["val/cam_energy_lift"] = row["val/cam_energy"] - 0.3
            row |= {"val/cam_pointing": 0.5 + 0.3 * part, "val/cam_pointing_lift": 0.3 * part}
    speed = 300 + dice.normal(0, 10)
    return row | {"time/images_per_s": speed, "time/epoch_s": 600 / speed, "time/loader_wait": 0.1}


def _write_history(folder: Path, rows: list[dict[str, float]]) -> None:
    with open(folder / "history.csv", "w", newline="") as file:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


def _about(classes: Sequence[str], images: int, fingerprint: str) -> dict[str, Any]:
    start = {
        "time": "2026-11-21T14:30:21+0000",
        "command": "python train.py --dataset=shapes --epochs=5",
        "commit": "6678f94d166b66eca8d1975987b44514cb771927",
        "changed": False,
        "python": "3.11.7",
        "versions": {"torch": "2.15.0", "timm": "1.0.31"},
        "processor": "A processor",
        "cores": 2,
        "device": "cpu",
        "bf16": False,
    }
    return {
        "split_fingerprint": fingerprint,
        "training_images": 7 * images // 3,
        "validation_images": images,
        "classes": list(classes),
        "parameters": 99530,
        "starts": [start],
    }


def _write_predictions(
    folder: Path, dice, reached: float, classes: int, images: int, fingerprint: str, epoch: int
) -> None:
    true = np.arange(images) % classes
    wrong = dice.random(images) > reached
    predicted = np.where(wrong, (true + 1 + dice.integers(0, 2, images)) % classes, true)
    arrays = {
        "index": np.arange(images),
        "file": np.array([f"val/{i}.JPEG" for i in range(images)]),
        "true": true,
        "predicted": predicted,
        "confidence": dice.random(images).astype(np.float32),
        "cam_energy": dice.random(images).astype(np.float32),
        "cam_pointing": dice.random(images).astype(np.float32),
        "fingerprint": np.array(fingerprint),
        "epoch": np.array(epoch),
    }
    with open(folder / "predictions.npz", "wb") as file:
        _write_npz(file, arrays)
