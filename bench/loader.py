"""Training images a second of the loader alone, against the plain way, in one run on one machine.

    python bench/loader.py [--data_dir=data]      about 3 minutes on 2 cores with Tiny ImageNet

Both give shuffled, augmented, normalised float batches of 128 from the same images with the same
augmentation, at strength 1. The plain way: pillow, albumentations' Compose, a sample at a time,
torch's DataLoader. Each figure is the median of the rounds; in a round the two take turns, and the
ratio is taken round by round. Workers are started, and the cache is built, before the clock starts.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import data
from augment import Augmentation
from loader import epoch_of, to_input, train_loader

BATCH = 128
RECIPE = Augmentation(crop_padding=4, flip=0.5, rotate_degrees=5, cutout_size=32, cutout_holes=2)
WORKERS = (0, 1, 2)


class PlainImages(Dataset):
    """What one would write first: open, augment, normalise, one sample at a time."""

    def __init__(self, source: data.Data, indices: np.ndarray):
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        import albumentations as A
        import cv2
        from albumentations.pytorch import ToTensorV2

        cv2.setNumThreads(0)
        size = source.images.shape[1]
        mean, std = data.NORMALIZATIONS[source.name]
        self.files = [str(source.root / source.file(i)) for i in indices]
        self.labels = source.labels[indices]
        self.transform = A.Compose(
            [
                A.PadIfNeeded(size + 8, size + 8, border_mode=cv2.BORDER_REFLECT_101),
                A.RandomCrop(size, size),
                A.HorizontalFlip(p=0.5),
                A.Rotate(limit=5, p=1.0, border_mode=cv2.BORDER_REFLECT_101),
                A.CoarseDropout(
                    num_holes_range=(1, 2),
                    hole_height_range=(32, 32),
                    hole_width_range=(32, 32),
                    fill=source.fill,
                    p=1.0,
                ),
                A.Normalize(mean, std),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        image = np.array(Image.open(self.files[index]).convert("RGB"))
        return self.transform(image=image)["image"], self.labels[index]


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
    plain = DataLoader(
        PlainImages(source, source.train),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
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
    chosen = whole.train[np.linspace(0, len(whole.train) - 1, options.images).astype(int)]
    source = data.Data(whole.name, whole.root, whole.cache, chosen, whole.val, whole.fingerprint)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{len(chosen):,} images an epoch, median of {options.rounds} rounds"
    )
    print("workers   plain images/s   ours images/s   ratio")
    for workers in WORKERS:
        ours, plain, ratio = compare(source, workers, options.rounds)
        print(f"{workers:7} {plain:16,.0f} {ours:15,.0f} {ratio:7.1f}", flush=True)


if __name__ == "__main__":
    main()
