"""The decoded images of a data set as one memory-mapped file, made once and shared by every
process.

`data_dir/.cache/<name>-<key>/` holds `images.npy` (uint8, N x H x W x 3) and `index.npz`. It
appears by a rename when it is whole; a key made from the files' names, sizes and times of change
tells whether it still fits.
"""

import os
import secrets
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

import locks
from cli import DISK_FULL, Failure, Mistake

WAIT_S = 0.2  # between two looks at a lock
VERSION = 1  # of what is stored; part of the folder's name


@dataclass(frozen=True)
class Cache:
    images: np.ndarray  # uint8 (N, H, W, 3), memory-mapped, RGB
    labels: np.ndarray  # int64 (N,)
    is_val: np.ndarray  # bool (N,): in the official validation part
    boxes: np.ndarray  # int16 (N, 4), see layout.NO_BOX
    content: np.ndarray  # uint64 (N,): equal for identical images only
    files: np.ndarray  # bytes (N,): path of each image, relative to the data set's folder
    classes: np.ndarray  # str (C,): ids
    names: np.ndarray  # str (C,): names for people


def open_cache(
    data_dir: Path,
    name: str,
    key: str,
    build: Callable[[Path], dict],
    check: Callable[[], None] = lambda: None,
) -> Cache:
    """The cache of this key. Where there is none, `build(images_npy)` writes the images and returns
    the other arrays; of several processes that come at once, one builds and the others wait for it.
    `check` may end the wait.
    """
    parent = data_dir / ".cache"
    folder = parent / f"{name}-v{VERSION}-{key}"
    cache = _read(folder)
    if cache is None:
        with _locked(parent, name, check):
            cache = _read(folder)
            if cache is None:
                _build(parent, name, folder, build)
                cache = _read(folder)
    assert cache is not None, f"{folder} was just built"
    return cache


def create_images(path: Path, count: int, height: int, width: int) -> None:
    """An empty images.npy that has its place on the disk, so that a full one shows at once."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, height, width, 3))
    size = images.offset + images.nbytes
    del images
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _read(folder: Path) -> Cache | None:
    if not folder.is_dir():
        return None
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        with np.load(folder / "index.npz") as index:
            arrays = {field.name: index[field.name] for field in fields(Cache)[1:]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"the cache {folder} is damaged ({error}): building it again", file=sys.stderr)
        return None
    return Cache(images, **arrays)


def _build(parent: Path, name: str, folder: Path, build: Callable[[Path], dict]) -> None:
    # We hold the lock: whatever else is here under this name is stale, or left by a killed process.
    # (Others' files, or on NFS files that are open, stay; they are in nobody's way. Without locks
    # somebody may be at work there.)
    for stale in [folder] if locks.missing else parent.glob(f"{name}-v*"):
        if stale.exists():
            shutil.rmtree(stale, ignore_errors=stale != folder)
    unfinished = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.unfinished")
    unfinished.mkdir()
    try:
        images = unfinished / "images.npy"
        arrays = build(images)
        np.savez(unfinished / "index.npz", **arrays)
        for path in (images, unfinished / "index.npz"):
            _sync(path)
        if not (locks.missing and folder.exists()):  # another was faster
            os.rename(unfinished, folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        needed = (images.stat().st_size if images.exists() else 0) / 1e9
        raise Failure(
            f"disk full: the cache {parent} needs {needed:.2f} GB and "
            f"{shutil.disk_usage(parent).free / 1e9:.2f} GB are free"
        ) from error
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)


@contextmanager
def _locked(parent: Path, name: str, check: Callable[[], None]) -> Iterator[None]:
    try:
        parent.mkdir(exist_ok=True)
        lock = open(parent / f"{name}.lock", "w")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise Failure(f"disk full: cannot make the cache {parent}") from error
        raise Mistake(
            f"the cache {parent} cannot be written ({error.strerror}); link the data set "
            "into a folder of your own and give that as --data_dir"
        ) from error
    with lock:
        if not locks.take(lock):
            print(f"waiting for another process that builds the cache of {name}", file=sys.stderr)
            while not locks.take(lock):
                check()
                time.sleep(WAIT_S)
        yield


def _sync(path: Path) -> None:
    """On the disk before the rename, so that a power cut leaves no cache of zeros."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
