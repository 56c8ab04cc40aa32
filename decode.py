"""Decode many image files in parallel: into the cache (`cache.py`), or only to look at them
(`check.py`).
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pool import cores, worker_pool

CHUNK = 256  # images a task: 3 MB at 64x64
FEW = 2048  # below it, starting worker processes costs more than it saves


@dataclass(frozen=True)
class Problem:
    index: int
    kind: str  # unreadable | wrong size | colour mode
    text: str


class BadImage(Exception):
    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Chunk:
    """What was found in a run of files: where it begins, a hash of each file's bytes, which are
    grey.
    """

    start: int
    content: np.ndarray  # uint64; 0 for a file that could not be read
    grey: np.ndarray  # bool
    problems: list[Problem]


def decode(data: bytes, size: int) -> tuple[np.ndarray, bool]:
    """RGB pixels of a file, and whether it is greyscale; pillow, as it refuses truncated files."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.size != (size, size):
            width, height = image.size
            raise BadImage("wrong size", f"is {width}x{height}, not {size}x{size}")
        if image.mode not in ("RGB", "L"):
            raise BadImage("colour mode", f"has colour mode {image.mode}, not RGB or greyscale")
        return np.asarray(image.convert("RGB")), image.mode == "L"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # pillow tells of broken files by any of these.
        reason = (
            "is no image"
            if isinstance(error, Image.UnidentifiedImageError)
            else f"is broken: {error}"
        )
        raise BadImage("unreadable", reason) from error


def decode_files(
    root: Path,
    files: Sequence[str],
    size: int,
    title: str,
    into: Path | None = None,
    processes: int | None = None,
) -> Iterator[Chunk]:
    """Decode `files` below `root`, with a progress bar; `into` is a .npy file that takes the
    pixels.
    """
    tasks = [(root, files[i : i + CHUNK], i, size, into) for i in range(0, len(files), CHUNK)]
    if processes is None:
        processes = cores() if len(files) >= FEW else 1
    with tqdm(total=len(files), desc=title, unit=" images", disable=None) as bar:
        for chunk in _run(tasks, processes):
            bar.update(len(chunk.content))
            yield chunk


def _run(tasks: list[tuple], processes: int) -> Iterator[Chunk]:
    if processes == 1:
        yield from map(_decode_chunk, tasks)
        return
    workers = worker_pool(processes)
    try:
        yield from workers.map(_decode_chunk, tasks)
    finally:
        workers.shutdown(cancel_futures=True)


def _decode_chunk(task: tuple[Path, Sequence[str], int, int, Path | None]) -> Chunk:
    root, files, start, size, into = task
    pixels = np.zeros((len(files), size, size, 3), np.uint8)
    chunk = Chunk(start, np.zeros(len(files), np.uint64), np.zeros(len(files), bool), [])
    for i, file in enumerate(files):
        try:
            data = (root / file).read_bytes()
            chunk.content[i] = content_hash(data)
            pixels[i], chunk.grey[i] = decode(data, size)
        except BadImage as bad:
            chunk.problems.append(Problem(start + i, bad.kind, f"{root / file} {bad}"))
        except OSError as error:
            text = f"{root / file} cannot be read: {error.strerror}"
            chunk.problems.append(Problem(start + i, "unreadable", text))
    if into is not None and not chunk.problems:
        write_rows(into, start, pixels)
    return chunk


def content_hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def write_rows(npy: Path, start: int, rows: np.ndarray) -> None:
    """Write into a .npy file by plain writes: a full disk then is an error, not a dead process."""
    offset = np.load(npy, mmap_mode="r").offset
    with open(npy, "r+b") as file:
        file.seek(offset + start * rows[0].nbytes)
        file.write(rows.tobytes())
