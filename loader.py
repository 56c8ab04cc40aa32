"""Batches for the device: whole batches of uint8 fetched from the cache, the same bytes for any
number of workers.

train = train_loader(data, augmentation, batch_size=128, seed=0, workers=2)
for batch in epoch_of(train, 3):
    x = to_input(batch.images.to(device), *normalization, image_size)
"""

import math
import os
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler

import dice
from augment import Augmentation, Augmenter, albumentations_functions, mix_batch
from data import Data, middle
from pool import follow_parent

ORDER = 3  # purpose of the dice, beside those of augment.py


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 (n, H, W, 3): channels last, as they lie in the cache
    labels: torch.Tensor  # int64 (n,)
    partners: torch.Tensor  # int64 (n,): class of what was mixed in; `labels` where nothing was
    share: torch.Tensor  # float32 (n,): weight of `labels`; the partner has the rest


class Request(NamedTuple):
    """Names a batch completely, so that a worker needs to remember nothing."""

    epoch: int
    start: int  # position of the first image in the epoch's order
    indices: np.ndarray  # into the cache


class EpochOrder(Sampler):
    """The batches of one epoch after another: shuffled by (seed, epoch), or in order with seed
    None.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int | None):
        self.indices, self.batch_size, self.seed, self.epoch = indices, batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)  # the short last batch is kept

    def __iter__(self) -> Iterator[Request]:
        order = self.indices
        if self.seed is not None:
            order = order[dice.order(len(order), self.seed, ORDER, self.epoch)]
        for start in range(0, len(order), self.batch_size):
            yield Request(self.epoch, start, order[start : start + self.batch_size])


class CachedImages(Dataset):
    """Fetches a whole batch at a time; with an augmenter, augments and mixes it."""

    def __init__(self, data: Data, augmenter: Augmenter | None):
        self.images, self.labels, self.augmenter = data.images, data.labels, augmenter

    def __getitem__(self, request: Request) -> Batch:
        epoch, start, indices = request
        images, labels = self.images[indices], self.labels[indices]
        partners, share = labels, np.ones(len(labels), np.float32)
        if self.augmenter is not None:
            images = self.augmenter(images, epoch, np.arange(start, start + len(indices)))
            images, partners, share = mix_batch(
                images, labels, self.augmenter.augmentation, self.augmenter.seed, epoch, start
            )
        return Batch(*map(torch.from_numpy, (images, labels, partners, share)))

    def __getstate__(self) -> dict:
        # Spawned workers open the file themselves instead of receiving a copy of it.
        return {**self.__dict__, "images": (self.images.filename, self.images.shape[1])}

    def __setstate__(self, state: dict) -> None:
        filename, size = state["images"]
        stored = np.load(filename, mmap_mode="r")
        self.__dict__.update(state, images=middle(stored, size))


def train_loader(
    data: Data, augmentation: Augmentation, batch_size: int, seed: int, workers: int = 0
) -> DataLoader:
    """Shuffled, augmented batches of the training images; iterate by `epoch_of`."""
    # Imported here once instead of in each worker, where W&B's hook on imports would refuse.
    albumentations_functions()
    images = CachedImages(data, Augmenter(augmentation, data.fill, seed))
    return _loader(images, EpochOrder(data.train, batch_size, seed), workers)


def val_loader(data: Data, batch_size: int, workers: int = 0) -> DataLoader:
    """All validation images, each once, in the order of `data.val`, as they are."""
    return _loader(CachedImages(data, None), EpochOrder(data.val, batch_size, None), workers)


def epoch_of(loader: DataLoader, epoch: int) -> Iterator[Batch]:
    loader.sampler.epoch = epoch
    return iter(loader)


def _loader(images: CachedImages, order: EpochOrder, workers: int) -> DataLoader:
    return DataLoader(
        images,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Otherwise every epoch would take a number from torch's global stream.
        generator=torch.Generator(),
        worker_init_fn=partial(_start_worker, os.getpid()),
    )


def _start_worker(parent: int, _worker: int) -> None:
    follow_parent(parent)


def to_input(images: torch.Tensor, mean: tuple, std: tuple, image_size: int) -> torch.Tensor:
    """uint8 (n, H, W, 3) to normalised float (n, 3, size, size) in channels_last, on its device."""
    n, height, width, channels = images.shape
    x = images.reshape(n, height, width * channels).float()
    mean, std = (_row(v, width, x.device) for v in (mean, std))
    x = x.sub_(mean).div_(std).view(n, height, width, channels).permute(0, 3, 1, 2)
    if image_size != height:
        x = interpolate(x, (image_size, image_size), mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache
def _row(values: tuple[float, ...], width: int, device: torch.device) -> torch.Tensor:
    """A number a channel, as a row of an image on the device: broadcasting along the 3 alone is
    half as fast on a CPU. Kept, as a GPU would be waited for with each copy.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).mul_(255).repeat(width)
