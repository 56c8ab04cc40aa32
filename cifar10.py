"""CIFAR-10 through torchvision, in the same cache as the other data sets."""

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np

from cache import Cache, create_images, open_cache
from cli import Failure, Mistake
from decode import content_hash, write_rows
from layout import NO_BOX, make_data_dir

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"


def folder(data_dir: Path) -> Path:
    return data_dir / FOLDER


def fetch(data_dir: Path) -> None:
    """Download and unpack; torchvision checks the md5."""
    from torchvision.datasets import CIFAR10

    make_data_dir(data_dir)
    try:
        CIFAR10(data_dir, download=True)
    # torchvision has RuntimeError for an archive that came in part.
    except (RuntimeError, URLError, ConnectionError, TimeoutError) as error:
        raise Failure(
            f"CIFAR-10 could not be downloaded ({getattr(error, 'reason', error)}); try again, or "
            f"put {ARCHIVE} into {data_dir} and call this again"
        ) from error
    print(f"{folder(data_dir)} is there")


def open_cifar10(data_dir: Path, check: Callable[[], None] = lambda: None) -> Cache:
    source = folder(data_dir)
    if not source.is_dir():
        raise Mistake(
            f"no {source.name}/ in --data_dir={data_dir}; get it with "
            f"`python data.py fetch --dataset=cifar10 --data_dir={shlex.quote(str(data_dir))}`"
        )
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.iterdir())]
    key = hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
    return open_cache(data_dir, "cifar10", key, lambda npy: _decode(data_dir, npy), check)


def _decode(data_dir: Path, images_npy: Path) -> dict:
    parts = [_read(data_dir, train) for train in (True, False)]
    images = np.concatenate([part.data for part in parts])
    create_images(images_npy, *images.shape[:3])
    write_rows(images_npy, 0, images)
    return {
        "labels": np.concatenate([part.targets for part in parts]).astype(np.int64),
        "is_val": np.repeat([False, True], [len(part.data) for part in parts]),
        "boxes": np.full((len(images), 4), NO_BOX, np.int16),
        "content": np.array([content_hash(image.tobytes()) for image in images], np.uint64),
        "files": np.array(
            [
                f"{name}/{i}".encode()
                for name, part in zip(("train", "test"), parts, strict=True)
                for i in range(len(part.data))
            ]
        ),
        "classes": np.array(parts[0].classes),
        "names": np.array(parts[0].classes),
    }


def _read(data_dir: Path, train: bool):
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(data_dir, train=train)
    except RuntimeError as error:  # torchvision's word for a missing or altered file
        raise Mistake(
            f"{folder(data_dir)} is not whole; remove it and get it again with "
            f"`python data.py fetch --dataset=cifar10 --data_dir={shlex.quote(str(data_dir))}`"
        ) from error
