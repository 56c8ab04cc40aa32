"""Batches for the device: whole batches of uint8 fetched from the cache, the same bytes for any
number of workers.

train = train_loader(data, augmentation, batch_size=128, seed=0, workers=2)
for batch in epoch_of(train, 3):
    x = to_input(batch.images.to(device), *normalization, image_size)

Where several processes train together, each has its part of the same batches: of each batch some
images to train on, of all batches every so-many-th to measure on.
"""

import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler

import dice
from augment import Augmentation, Augmenter, albumentations_functions, mix_batch
from cli import Mistake
from data import Data, middle
from pool import follow_parent
from ranks import ALONE, Ranks

# From 3.14 on Python's own choice has a server fork them: its children have another parent, and
# import everything again.
FORK = "fork" if sys.platform == "linux" else None
PREFETCHED = 2  # batches that torch has each worker make ahead
SHARED_MEMORY = Path("/dev/shm")
SMALL_BYTES = 64 * 1024  # more than labels and the like take
ORDER = 3  # purpose of the dice, beside those of augment.py


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 (n, H, W, 3): channels last, as they lie in the cache
    labels: torch.Tensor  # int64 (n,)
    partners: torch.Tensor  # int64 (n,): class of what was mixed in; `labels` where nothing was
    share: torch.Tensor  # float32 (n,): weight of `labels`; the partner has the rest
    start: int  # position of the whole batch's first image in the epoch's order
    whole: int  # images of the whole batch, of which another process may have some

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(part.to(device, non_blocking=True) for part in self[:4]), *self[4:])


class Request(NamedTuple):
    """Names a batch completely, so that a worker needs to remember nothing."""

    epoch: int
    start: int  # position of the first image in the epoch's order
    indices: np.ndarray  # into the cache
    part: slice  # of these, what is asked for


class EpochOrder(Sampler):
    """The batches of one epoch after another; each process of `ranks` gets so many, though some
    may be empty.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, ranks: Ranks):
        self.indices, self.batch_size, self.ranks, self.epoch = indices, batch_size, ranks, 0

    @property
    def batches(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)  # the short last batch is kept

    @property
    def largest(self) -> int:
        """Images that this process has of a batch."""
        return min(self.batch_size, len(self.indices))


class TrainingOrder(EpochOrder):
    """Shuffled by (seed, epoch); of each batch its part to each process."""

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, ranks: Ranks):
        super().__init__(indices, batch_size, ranks)
        self.seed = seed

    def __len__(self) -> int:
        return self.batches

    @property
    def largest(self) -> int:
        return math.ceil(super().largest / self.ranks.world)

    def __iter__(self) -> Iterator[Request]:
        order = self.indices[dice.order(len(self.indices), self.seed, ORDER, self.epoch)]
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield Request(self.epoch, start, batch, self.ranks.part(len(batch)))


class MeasuringOrder(EpochOrder):
    """As they come; whole batches to each process in turn, so that every image is measured in the
    same company, whoever does it.
    """

    def __len__(self) -> int:
        return math.ceil(self.batches / self.ranks.world)

    def __iter__(self) -> Iterator[Request]:
        for turn in range(len(self)):
            start = (turn * self.ranks.world + self.ranks.rank) * self.batch_size
            batch = self.indices[start : start + self.batch_size]
            yield Request(self.epoch, start, batch, slice(0, len(batch)))


class CachedImages(Dataset):
    """Fetches a whole batch at a time; with an augmenter, augments and mixes it."""

    def __init__(self, data: Data, augmenter: Augmenter | None):
        self.images, self.labels, self.augmenter = data.images, data.labels, augmenter

    def __getitem__(self, request: Request) -> Batch:
        epoch, start, whole, part = request
        places = np.arange(len(whole))[part]
        mixes = self.augmenter is not None and self.augmenter.augmentation.mixes
        if mixes and len(places) < len(whole):
            # The partner of an image is the one before it.
            places = np.append((part.start - 1) % len(whole), places)
        images, labels = self.images[whole[places]], self.labels[whole[places]]
        partners, share = labels, np.ones(len(labels), np.float32)
        if self.augmenter is not None:
            images = self.augmenter(images, epoch, start + places)
            images, partners, share = mix_batch(
                images, labels, self.augmenter.augmentation, self.augmenter.seed, epoch, start
            )
        own = slice(len(places) - (part.stop - part.start), None)
        arrays = (torch.from_numpy(values[own]) for values in (images, labels, partners, share))
        return Batch(*arrays, start, len(whole))

    def __getstate__(self) -> dict:
        # Spawned workers open the file themselves instead of receiving a copy of it.
        return {**self.__dict__, "images": (self.images.filename, self.images.shape[1])}

    def __setstate__(self, state: dict) -> None:
        filename, size = state["images"]
        stored = np.load(filename, mmap_mode="r")
        self.__dict__.update(state, images=middle(stored, size))


def train_loader(
    data: Data,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    workers: int = 0,
    ranks: Ranks = ALONE,
    pinned: bool = False,
) -> DataLoader:
    """Shuffled, augmented batches of the training images; iterate by `epoch_of`. `pinned`: in
    memory that a GPU copies from without waiting.
    """
    # Imported here once instead of in each worker, where W&B's hook on imports would refuse.
    albumentations_functions()
    images = CachedImages(data, Augmenter(augmentation, data.fill, seed))
    return _loader(images, TrainingOrder(data.train, batch_size, seed, ranks), workers, pinned)


def val_loader(
    data: Data, batch_size: int, workers: int = 0, ranks: Ranks = ALONE, pinned: bool = False
) -> DataLoader:
    """All validation images, each once, in the order of `data.val`, as they are."""
    order = MeasuringOrder(data.val, batch_size, ranks)
    return _loader(CachedImages(data, None), order, workers, pinned)


def epoch_of(loader: DataLoader, epoch: int) -> Iterator[Batch]:
    loader.sampler.epoch = epoch
    batches = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        # The handler that torch sets raises for each worker that ends, wherever the process is: in
        # another signal's handler, in W&B's client, in a destructor. Without it torch looks after
        # them every 5 s where it waits for a batch. (Not SIG_DFL: of a signal that has come before
        # Python would print.)
        signal.signal(signal.SIGCHLD, lambda *_: None)
    return batches


def _loader(images: CachedImages, order: EpochOrder, workers: int, pinned: bool) -> DataLoader:
    if workers:
        check_shared_memory(images.images[:1].nbytes, order, workers)
    return DataLoader(
        images,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=FORK if workers else None,
        pin_memory=pinned,
        # Otherwise every epoch would take a number from torch's global stream.
        generator=torch.Generator(),
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=partial(_start_worker, os.getpid(), order.ranks.several),
    )


def check_shared_memory(image_bytes: int, order: EpochOrder, workers: int) -> None:
    """Workers hand batches over in shared memory, of which a container may have little."""
    room = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    if room is None or not room.total:  # without a limit
        return
    batches = min(PREFETCHED * workers + 2, len(order))  # and the one in work, the one next
    needed = order.ranks.local_world * batches * (order.largest * image_bytes + SMALL_BYTES)
    if needed > room.free:
        raise Mistake(
            f"workers={workers}: their batches of {order.largest} images take up to "
            f"{needed / 1e6:.1f} MB of {SHARED_MEMORY}, which has {room.free / 1e6:.1f} MB free; "
            "fewer of them, or more of it (docker run --shm-size=1g)"
        )


def _give_up(error: Exception, _batch: Any) -> None:
    """A worker that cannot hand a batch over, for a full /dev/shm, ends. As it comes it would go on
    without the batch, for which its parent waits for ever.
    """
    os.write(2, f"a worker of the loader cannot hand a batch over: {error}\n".encode())
    os._exit(1)


def _start_worker(parent: int, apart: bool, _worker: int) -> None:
    Queue._on_queue_feeder_error = staticmethod(_give_up)
    if apart:
        # torchrun sends its signals to a process and all its children. Where a child ends by one,
        # its parent leaves its work at another place than the other processes.
        os.setpgid(0, 0)
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
