"""Unpack the archive of Tiny ImageNet: all of it or nothing, and nothing outside its folder.

Whoever sends it is not trusted: what is odd in it (links, `../`, a bomb's ratio) is refused before
a file is written.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from cli import DISK_FULL, Failure, Mistake
from layout import FOLDER

MAX_UNPACKED_BYTES = 4 << 30  # the real one has a quarter of a GB: more is a zip bomb
MAX_RATIO = 100  # unpacked / packed; JPEGs hardly shrink
DISK_BLOCK_BYTES = 4096  # the least that a small file takes
# What zipfile raises on damaged archives.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError)
ANOTHER = "take another address with --url=… or a local file with --zip=…"


def unpack(path: Path, target: Path, source: str) -> None:
    """Unpack beside `target`, whose lock the caller holds, then rename; `source` is the archive's
    name in messages.
    """
    temporary = target.with_name(f".{FOLDER}.unpacking")
    if temporary.exists():  # of a process that was killed
        shutil.rmtree(temporary)
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise Mistake(f"{source}: not a whole zip file ({error}); {ANOTHER}") from error
    with archive:
        members = _members(archive.infolist(), path.stat().st_size, source)
        blocks = sum(-(-info.file_size // DISK_BLOCK_BYTES) for info in members.values())
        try:
            with room(target.parent, blocks * DISK_BLOCK_BYTES):
                temporary.mkdir()
                for name, info in tqdm(members.items(), "unpacking", unit=" files", disable=None):
                    _extract(archive, info, temporary / name, source)
                os.rename(temporary, target)
        finally:  # after Ctrl-C, too
            if temporary.exists():
                shutil.rmtree(temporary)


def _members(infos: list[zipfile.ZipInfo], size: int, source: str) -> dict[str, zipfile.ZipInfo]:
    """The files to unpack, by their path in the data set; a Mistake if anything is odd."""
    names, files = set(), {}
    for info in infos:
        name = info.filename.rstrip("/")
        if problem := "is there twice" if name in names else _oddity(info, size):
            raise Mistake(f"{source}: refused, as {info.filename!r} {problem}; {ANOTHER}")
        names.add(name)
        if not info.is_dir():
            files[name] = info
    total = sum(info.file_size for info in infos)
    if total > min(MAX_UNPACKED_BYTES, MAX_RATIO * size):
        raise Mistake(f"{source}: refused, as it unpacks to {total:,} bytes; {ANOTHER}")
    top = f"{FOLDER}/" if f"{FOLDER}/wnids.txt" in files else ""
    if f"{top}wnids.txt" not in files or not all(name.startswith(top) for name in files):
        raise Mistake(f"{source}: not Tiny ImageNet ({FOLDER}/wnids.txt, all beside it); {ANOTHER}")
    return {name.removeprefix(top): info for name, info in files.items()}


def _oddity(info: zipfile.ZipInfo, size: int) -> str:
    """Why this member must not be unpacked; empty if it may."""
    name = info.orig_filename  # zipfile cuts the other one at a zero byte
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 from systems that do not say
    if len(name.encode()) > 255 or any(part in ("", ".", "..") for part in parts):
        return "is no plain path inside the archive"  # "" at the start: an absolute one
    if re.search(r"[\\:\0]", name):
        return "is a Windows path, or none at all"
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or a special file"
    if info.flag_bits & 1:
        return "is encrypted"
    if not 0 <= info.header_offset < size:
        return "lies outside the file"
    unusual = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return "is compressed in an unusual way" if unusual else ""


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, source: str) -> None:
    """Write one member; zipfile compares its checksum and stops at its declared size."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as packed, path.open("xb") as file:
            shutil.copyfileobj(packed, file)
            if file.tell() != info.file_size:
                raise EOFError(f"{file.tell():,} of {info.file_size:,} bytes")
    except (*DAMAGE, FileExistsError, NotADirectoryError) as error:  # a file that is a folder, too
        raise Mistake(f"{source}: {info.filename!r} is damaged ({error}); {ANOTHER}") from error


@contextlib.contextmanager
def room(folder: Path, need: int) -> Iterator[None]:
    """Fail in one line where the disk is too full for `need` bytes, at once or on the way."""
    try:
        if shutil.disk_usage(folder).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        what = f"needed {need:,} bytes, {shutil.disk_usage(folder).free:,} are free"
        hint = "make room or choose another --data_dir, and run the same command again"
        raise Failure(f"{folder}: {error.strerror}: {what}; {hint}") from error
