"""Checkpoints: written whole, read without running anything that is in them."""

import errno
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from cli import Mistake

KEYS = ("model", "config", "epoch")  # of best.pt; last.pt has more
OF_CONTENT = (None, errno.EINVAL, errno.EISDIR)  # not the disk's or the network's fault
FOLDER = 0x10  # attribute of a member: torch takes its weights from memory that nothing was read to


def save(state: dict[str, Any], file: BinaryIO) -> None:
    import torch

    torch.save(state, file)


def load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A checkpoint with these keys, on the CPU; a Mistake where the file is damaged or something
    else.
    """
    import torch

    try:
        _check_sums(path)
        with warnings.catch_warnings(action="ignore"):  # torch's, of what it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Mistake(f"{path} is missing") from None
    # torch, zipfile and the unpickler each have many words for a file that is not whole.
    except Exception as error:
        told_by_file = isinstance(error, OSError) and error.errno in OF_CONTENT
        if isinstance(error, MemoryError | OSError) and not told_by_file:
            raise
        raise Mistake(f"{path} is damaged or no checkpoint; remove it to begin anew") from error
    if not isinstance(state, dict) or not set(keys) <= set(state):
        raise Mistake(f"{path} is no checkpoint of this program; remove it to begin anew")
    return state


def _check_sums(path: Path) -> None:
    """Compare the archive with its checksums, which torch leaves out: a flipped bit is a weight."""
    with zipfile.ZipFile(path) as archive:
        folders = [one for one in archive.infolist() if one.external_attr & FOLDER]
        if folders or archive.testzip():
            raise zipfile.BadZipFile("a member is damaged")
