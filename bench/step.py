"""Training images a second, loading included, against the plain way, in one run on one machine.

    python bench/step.py [--data_dir=data]      about 6 minutes on 2 cores with Tiny ImageNet

Both train ResNet18 with SGD on batches of 128 of the same images with the same augmentation. Plain:
pillow, albumentations a sample at a time in 2 loader workers, float32, the model's parameters as
they come. Ours: `train.py` as it comes. In a round the two take turns; the ratio is taken round by
round, and each figure is the median. The first steps of each are not counted.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.nn.functional import cross_entropy

import data
import model as models
from bench.plain import BATCH, RECIPE, plain_loader, some_of
from config import Config
from learner import Learner
from loader import epoch_of, train_loader

WORKERS = 2
UNCOUNTED_STEPS = 2
RATE = 0.01


def plain_steps(source: data.Data) -> Iterator[int]:
    """Train for ever; yields the images of each step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.create_model("resnet18", len(source.cache.classes), 64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    loader = plain_loader(source, WORKERS)
    while True:
        for images, labels in loader:
            loss = cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(labels)


def our_steps(source: data.Data) -> Iterator[int]:
    config = Config(
        dataset=source.name,
        batch_size=BATCH,
        max_lr=RATE,
        schedule="constant",
        cutout_size=RECIPE.cutout_size,  # the other numbers of RECIPE are the defaults
        cutout_holes=RECIPE.cutout_holes,
    )
    learner = Learner(config, source, steps_per_epoch=1)
    augmentation = config.augmentation(source.images.shape[1])
    loader = train_loader(source, augmentation, BATCH, config.seed, WORKERS)
    learner.begin_epoch(1)
    epoch = 0
    while True:
        for batch in epoch_of(loader, epoch := epoch + 1):
            loss, _ = learner.train_step(batch)
            loss.item()
            yield len(batch.labels)


def images_per_s(steps: Iterator[int], seconds: float) -> float:
    start, seen = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        seen += next(steps)
    return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="tiny-imagenet", choices=("tiny-imagenet", "shapes"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40, help="of each, a round (default: 40)")
    options = parser.parse_args()
    whole = data.load(options.dataset, options.data_dir)
    source = some_of(whole, len(whole.train) // BATCH * BATCH)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ResNet18 at 64 px")
    print("round   plain images/s   ours images/s   ratio")
    rounds = []
    plain, ours = plain_steps(source), our_steps(source)
    for steps in (plain, ours):
        for _ in range(UNCOUNTED_STEPS):
            next(steps)
    for number in range(1, options.rounds + 1):
        a, b = images_per_s(plain, options.seconds), images_per_s(ours, options.seconds)
        rounds.append((a, b, b / a))
        print(f"{number:5} {a:16.1f} {b:15.1f} {b / a:7.1f}", flush=True)
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print("median {:15.1f} {:15.1f} {:7.1f}".format(*medians))


if __name__ == "__main__":
    main()
