"""What people would otherwise pick, against train.py as it comes: images a second, start, memory.

    python bench/peers.py [--data_dir=data]      about 12 minutes on 2 cores without bf16

All train ResNet18 with SGD on batches of 128 of Tiny ImageNet's training images with 2 loader
workers, loading included:

plain      pillow, albumentations a sample at a time, float32, parameters as they come
timm       timm's own loader and transforms, and the step of its train.py; channels_last, bf16
lightning  Lightning's Trainer, torchvision's ImageFolder and transforms; channels_last, bf16
ours       python train.py, tracked, with the augmentation of `plain`, the heaviest: crop, flip,
           rotation, two holes (timm: its defaults without colour jitter; lightning: crop and flip)

(bf16 where train.py would use it, too: where the processor or the GPU multiplies it quickly.) Each
is a process of its own; in a round they take turns, and ratios are taken round by round. Counted
are whole steps, without the first ones. "start" is from the start of the process to the start of
the first step; "imports" beside it those of torch, timm and wandb alone. "memory" is the most that
the training process had (its loader workers are not counted).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cli

WORKERS = 2
BATCH = 128
RATE = 0.01
UNCOUNTED_STEPS = 3


class Meter:
    """Told of each step of a way, says when it has seen enough."""

    def __init__(self, started: float, seconds: float):
        self.started, self.seconds = started, seconds
        self.first_step_s = 0.0
        self.steps = self.images = 0
        self.since = self.until = 0.0

    def begin_step(self) -> None:
        if not self.steps:
            self.first_step_s = time.time() - self.started

    def end_step(self, images: int) -> bool:
        """Whether that was the last one."""
        self.steps += 1
        if self.steps == UNCOUNTED_STEPS:
            wait_for_device()
            self.since = time.perf_counter()
        elif self.steps > UNCOUNTED_STEPS:
            self.images += images
            if time.perf_counter() - self.since >= self.seconds:
                wait_for_device()
                self.until = time.perf_counter()  # what comes now is the way's own end
                return True
        return False

    def report(self) -> dict[str, float]:
        rate = self.images / ((self.until or time.perf_counter()) - self.since)
        return {
            "images_per_s": rate,
            "start_s": self.first_step_s,
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train_folder(options: argparse.Namespace) -> Path:
    import layout

    return layout.find_root(options.data_dir) / "train"


def plain(meter: Meter, options: argparse.Namespace) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    import data
    import model as models
    from bench.plain import plain_loader

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = data.load("tiny-imagenet", options.data_dir)
    model = models.create_model("resnet18", len(source.cache.classes), 64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    for images, labels in plain_loader(source, WORKERS):
        meter.begin_step()
        loss = cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if meter.end_step(len(labels)):
            return


def timms(meter: Meter, options: argparse.Namespace) -> None:
    from timm.data import create_dataset

    from bench.timm_way import TimmWay

    dataset = create_dataset("torch/image_folder", str(train_folder(options)))
    way = TimmWay(dataset, len(dataset.classes), BATCH, WORKERS, RATE)
    for images, labels in way.loader:
        meter.begin_step()
        way.step(images, labels)
        if meter.end_step(len(labels)):
            return


def lightnings(meter: Meter, options: argparse.Namespace) -> None:
    import pytorch_lightning as lightning
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    import model as models
    from bench.timm_way import MEAN, STD
    from learner import wants_amp

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Module(lightning.LightningModule):
        def __init__(self, classes: int):
            super().__init__()
            self.model = models.create_model("resnet18", classes, 64)
            self.model.to(memory_format=torch.channels_last)

        def training_step(self, batch, _number):
            images, labels = batch
            images = images.contiguous(memory_format=torch.channels_last)
            return cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), RATE, momentum=0.9, weight_decay=5e-4)

    class Watch(lightning.Callback):
        def on_train_batch_start(self, *_):
            meter.begin_step()

        def on_train_batch_end(self, trainer, _module, _outputs, batch, _number):
            trainer.should_stop |= meter.end_step(len(batch[1]))

    steps = [v2.RandomCrop(64, padding=4), v2.RandomHorizontalFlip(), v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    dataset = ImageFolder(train_folder(options), v2.Compose(steps))
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, pin_memory=True)
    trainer = lightning.Trainer(
        max_epochs=100,
        devices=1,
        precision="bf16-mixed" if wants_amp("auto", device) else "32-true",
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(len(dataset.classes)), loader)


def ours(meter: Meter, options: argparse.Namespace) -> None:
    """The command itself, as a user calls it, stopped in mid-epoch."""
    import cli
    import train

    real = train.train_one_epoch

    def watched(learner, *arguments, **named):
        step = type(learner).train_step.__get__(learner)  # not the last epoch's `watch`

        def watch(batch):
            meter.begin_step()
            told = step(batch)
            if meter.end_step(len(batch.labels)):
                leave(meter)
            return told

        learner.train_step = watch
        return real(learner, *arguments, **named)

    train.train_one_epoch = watched
    folder = tempfile.mkdtemp(prefix="tinysweep-bench-")
    flags = {"data_dir": options.data_dir, "output_dir": folder, "workers": WORKERS}
    flags |= {"batch_size": BATCH, "cutout_size": 32, "cutout_holes": 2, "compile": options.compile}
    sys.argv = ["train.py", *(f"--{key}={value}" for key, value in flags.items())]
    os.environ["WANDB_MODE"] = "offline"
    cli.run(train.command)


def leave(meter: Meter) -> None:
    """Say what was measured; without the ending of a run, which takes longer than the bench."""
    print("\n" + json.dumps(meter.report()), flush=True)
    os._exit(0)


WAYS: dict[str, Callable[[Meter, argparse.Namespace], None]] = {
    "plain": plain,
    "timm": timms,
    "lightning": lightnings,
    "ours": ours,
}


def imports_s() -> float:
    """To the end of the imports, without the end of the process."""
    command = [sys.executable, "-c", "import time, torch, timm, wandb; print(time.time())"]
    start = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) - start


def measured(way: str, options: argparse.Namespace) -> dict[str, float]:
    """One way in a process of its own."""
    flags = [f"--data_dir={options.data_dir}", f"--seconds={options.seconds}"]
    flags += [f"--compile={options.compile}", f"--way={way}", f"--started={time.time()}"]
    with tempfile.TemporaryDirectory(prefix="tinysweep-bench-") as folder:
        command = [sys.executable, __file__, *flags]
        env = {**os.environ, "TMPDIR": folder}  # for the run that it leaves in the middle
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"{way} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(lines[-1])


def rounds(options: argparse.Namespace) -> Iterator[dict[str, dict[str, float]]]:
    for _ in range(options.rounds):
        found = {"imports": {"start_s": imports_s()}}
        for way in options.ways:
            found[way] = measured(way, options)
            rate = found[way]["images_per_s"]
            print(f"  {way}: {rate:.1f} images/s", file=sys.stderr, flush=True)
        yield found


def table(found: list[dict[str, dict[str, float]]], ways: list[str]) -> str:
    """The median of each figure, and of the ratios of each round."""

    def median(key: str, way: str) -> float:
        return statistics.median(one[way][key] for one in found)

    lines = [
        "| | images/s | ours is faster by | start (s) | memory (MiB) |",
        "|---|--:|--:|--:|--:|",
    ]
    for way in ways:
        pairs = [(one["ours"]["images_per_s"], one[way]["images_per_s"]) for one in found]
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        rate, start, memory = (median(k, way) for k in ("images_per_s", "start_s", "memory_mib"))
        lines.append(f"| {way} | {rate:.1f} | {ratio:.2f} | {start:.1f} | {memory:,.0f} |")
    bare = statistics.median(one["imports"]["start_s"] for one in found)
    share = statistics.median(one["ours"]["start_s"] / one["imports"]["start_s"] for one in found)
    lines.append(f"\nimports alone {bare:.1f} s; ours starts in {share:.2f} times that")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30, help="of each, a round (default: 30)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--compile", default="auto", help="ours: auto, true, false")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one, in this process
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        meter = Meter(options.started, options.seconds)
        WAYS[options.way](meter, options)
        leave(meter)
    if "ours" not in options.ways:
        options.ways.append("ours")
    found = list(rounds(options))
    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(table(found, options.ways))


if __name__ == "__main__":
    cli.run(lambda _: main())
