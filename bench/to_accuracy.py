"""Training time until both are as accurate: train.py against timm's way, on 50 classes.

    python bench/to_accuracy.py [--data_dir=data] [--dir=FOLDER]     hours on a CPU without bf16

ResNet18 on 50 classes of Tiny ImageNet, the same 70/30 split, batches of 128 and as many epochs;
SGD with Nesterov's momentum, its rate up to 0.25 and down to nothing, weight decay 5e-4, labels
smoothed by 0.1. What differs is the way:

ours       python train.py: crops from 4 mirrored pixels and flips; all epochs but the last third at
           32 px; the rate along lines, its peak after 20% of the steps
timm       timm's loader and step, all at 64 px; random resized crops (of half the area or more: its
           default of 0.08 is for hundreds of epochs) and flips; the rate by its cosine schedule
           with a fifth of the epochs, at least one, to warm up

Both are measured on all validation images after each epoch, at the pixels of that epoch; what is
measured below 64 px counts for nothing. Seconds are those of the training alone, loading included.
The target is what both reach in the end, unless given. A folder
given by --dir keeps what is done: with it the same call goes on after the last whole epoch.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cli
import data
from subset import write_subset

REPO = Path(__file__).parent.parent
BATCH, WORKERS, PEAK, WARMUP, SMOOTHING = 128, 2, 0.25, 0.2, 0.1
SMALL = "32:0.67"
SCALE = (0.5, 1.0)

FULL = 64

Curve = list[tuple[float, float, int]]  # of epochs: seconds of training until then, val/acc, pixels


def ours(data_dir: Path, folder: Path, epochs: int) -> Curve:
    flags = {
        "data_dir": data_dir,
        "output_dir": folder,
        "run_id": "ours",
        "epochs": epochs,
        "batch_size": BATCH,
        "workers": WORKERS,
        "crop_padding": 4,
        "cutout_size": 0,
        "rotate_degrees": 0,
        "resolution_schedule": SMALL,
        "schedule": "onecycle",
        "anneal": "linear",
        "max_lr": PEAK,
        "warmup_fraction": WARMUP,
        "nesterov": True,
        "weight_decay": 5e-4,
        "label_smoothing": SMOOTHING,
    }
    command = [sys.executable, REPO / "train.py", *(f"--{k}={v}" for k, v in flags.items())]
    subprocess.run(command, check=True, env={**os.environ, "WANDB_MODE": "offline"})
    images = len(data.load("tiny-imagenet", data_dir).train)
    curve, seconds = [], 0.0
    for row in csv.DictReader((folder / "ours" / "history.csv").open()):
        seconds += images / float(row["time/images_per_s"])
        curve.append((seconds, float(row["val/acc"]), int(row["pixels"])))
    return curve


def timms(data_dir: Path, folder: Path, epochs: int) -> Curve:
    import torch
    from timm.scheduler import create_scheduler_v2
    from tqdm import tqdm

    from bench.timm_way import Files, TimmWay

    source = data.load("tiny-imagenet", data_dir)
    classes = len(source.cache.classes)
    kept = folder / f"timm-{classes}-{epochs}.pt"
    torch.manual_seed(0)
    way = TimmWay(Files(source), classes, BATCH, WORKERS, PEAK, SMOOTHING, scale=SCALE)
    schedule, _ = create_scheduler_v2(
        way.optimizer,
        "cosine",
        num_epochs=epochs,
        warmup_epochs=max(1, round(WARMUP * epochs)),
        step_on_epochs=False,
        updates_per_epoch=len(way.loader),
    )
    curve, seconds = [], 0.0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        way.model.load_state_dict(state["model"])
        way.optimizer.load_state_dict(state["optimizer"])
        curve = [tuple(point) for point in state["curve"]]
        seconds = curve[-1][0]
    step = len(curve) * len(way.loader)
    schedule.step_update(step)
    for epoch in range(len(curve) + 1, epochs + 1):
        torch.manual_seed(epoch)
        way.model.train()
        start = time.perf_counter()
        for images, labels in tqdm(way.loader, f"timm, epoch {epoch}", leave=False, disable=None):
            way.step(images, labels)
            step += 1
            schedule.step_update(step)
        seconds += time.perf_counter() - start
        curve.append((seconds, accuracy(way, source), FULL))
        state = {"model": way.model.state_dict(), "optimizer": way.optimizer.state_dict()}
        torch.save({**state, "curve": curve}, kept)
        print(f"timm, epoch {epoch}/{epochs}: {told(*curve[-1])}", flush=True)
    return curve


def accuracy(way, source: data.Data) -> float:
    import torch

    from loader import to_input, val_loader

    way.model.eval()
    right = 0
    with torch.inference_mode():
        for batch in val_loader(source, BATCH, WORKERS):
            images = to_input(batch.images.to(way.device), *data.NORMALIZATIONS[source.name], FULL)
            right += (way.forward(images).argmax(1).cpu() == batch.labels).sum().item()
    return right / len(source.val)


WAYS = {"ours": ours, "timm": timms}


def compared(curves: dict[str, Curve], target: float | None) -> str:
    """A table, an epoch a line, and who was there first."""
    lines = ["| epoch | " + " | ".join(curves) + " |", "|--:|" + "--:|" * len(curves)]
    for epoch, points in enumerate(zip(*curves.values(), strict=True), 1):
        lines.append(f"| {epoch} | " + " | ".join(told(*point) for point in points) + " |")
    target = target or min(max(acc for _, acc, _ in at_full(curve)) for curve in curves.values())
    first = {way: time_to(curve, target) for way, curve in curves.items()}
    there = ", ".join(f"{way} {s:.0f} s" if s else f"{way} never" for way, s in first.items())
    ratio = ""
    if all(first.values()):
        ratio = f": ours is {first['timm'] / first['ours']:.2f} times as fast"
    return "\n".join([*lines, "", f"to {target:.2%}: {there}{ratio}"])


def time_to(curve: Curve, target: float) -> float | None:
    """Seconds until the end of the first epoch that is so accurate."""
    return next((seconds for seconds, acc, _ in at_full(curve) if acc >= target), None)


def at_full(curve: Curve) -> Curve:
    return [point for point in curve if point[2] == FULL]


def told(seconds: float, acc: float, pixels: int) -> str:
    return f"{seconds:.0f} s: {acc:.2%} at {pixels} px"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--dir", type=Path, help="keeps what is done (default: a temporary one)")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=3, help="of both (default: 3)")
    parser.add_argument("--target", type=float, help="accuracy, 0 to 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinysweep-bench-") as folder:
        curves = trained(options.dir or Path(folder), options)
    print(compared(curves, options.target))


def trained(folder: Path, options: argparse.Namespace) -> dict[str, Curve]:
    """Both curves; what lies in the folder from an earlier call of the same kind is not redone."""
    asked = {"classes": options.classes, "epochs": options.epochs}
    subset = folder / "data"
    if not subset.exists():
        write_subset(options.data_dir, subset, options.classes)
    curves = {}
    for way, train in WAYS.items():
        done = folder / f"{way}.json"
        if not done.is_file():
            curve = train(subset, folder, options.epochs)
            done.write_text(json.dumps({**asked, "curve": curve}))
        kept = json.loads(done.read_text())
        curves[way] = kept.pop("curve")
        if kept != asked:
            raise SystemExit(f"{done} is of {kept}, this call of {asked}; give another --dir")
    return curves


if __name__ == "__main__":
    cli.run(lambda _: main())
