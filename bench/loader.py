"""Training images a second of the loader alone, against the plain way, in one run on one machine.

    python bench/loader.py [--data_dir=data]      about 3 minutes on 2 cores with Tiny ImageNet

Both give shuffled, augmented, normalised float batches of 128 from the same images with the same
augmentation, at strength 1. The plain way: pillow, albumentations' Compose, a sample at a time,
torch's DataLoader. Each figure is the median of the rounds; in a round the two take turns, and the
ratio is taken round by round. Workers are started, and the cache is built, before the clock starts.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.data import DataLoader

import cli
import data
from bench.plain import BATCH, RECIPE, plain_loader, some_of
from loader import epoch_of, to_input, train_loader

WORKERS = (0, 1, 2)


def plain_epoch(loader: DataLoader):
    for images, _ in loader:
        yield images


def our_epoch(loader: DataLoader, source: data.Data, epoch: int):
    for batch in epoch_of(loader, epoch):
        yield to_input(batch.images, *data.NORMALIZATIONS[source.name], source.images.shape[1])


def images_per_s(batches) -> float:
    start, seen = time.perf_counter(), 0
    for images in batches:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def compare(source: data.Data, workers: int, rounds: int) -> tuple[float, float, float]:
    plain = plain_loader(source, workers)
    ours = train_loader(source, RECIPE, BATCH, seed=0, workers=workers)
    figures = []
    for epoch in range(rounds + 1):  # the first one starts the workers
        figures.append(
            (images_per_s(our_epoch(ours, source, epoch)), images_per_s(plain_epoch(plain)))
        )
    figures = figures[1:]
    columns = zip(*((a, b, a / b) for a, b in figures), strict=True)
    return tuple(statistics.median(column) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="tiny-imagenet", choices=("tiny-imagenet", "shapes"))
    parser.add_argument(
        "--images", type=int, default=12_800, help="images an epoch (default: 12800)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    whole = data.load(options.dataset, options.data_dir)
    source = some_of(whole, options.images)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{len(source.train):,} images an epoch, median of {options.rounds} rounds"
    )
    print("workers   plain images/s   ours images/s   ratio")
    for workers in WORKERS:
        ours, plain, ratio = compare(source, workers, options.rounds)
        print(f"{workers:7} {plain:16,.0f} {ours:15,.0f} {ratio:7.1f}", flush=True)


if __name__ == "__main__":
    cli.run(lambda _: main())
