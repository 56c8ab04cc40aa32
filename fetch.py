"""Fetch Tiny ImageNet and unpack it: `python data.py fetch`, 237 MiB, then about half a minute.

Its server is slow and at times away: a broken download goes on where it stopped, in the same run
or in the next. No archive is used that its md5 does not vouch for, and `tiny-imagenet-200/`
appears in one rename: it is whole, or it is not there.
"""

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import locks
from archive import ANOTHER, room, unpack
from cli import Failure, Mistake
from layout import FOLDER, make_data_dir

OFFICIAL_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
OFFICIAL_BYTES = 248_100_043
OFFICIAL_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

TRIES = 5  # connections in a row that bring nothing new, before giving up
TIMEOUT_SECONDS = 30.0  # a connection that is silent for so long counts as broken
PAUSE_SECONDS = 0.5  # after a connection that brought something; doubles with each that did not
CHUNK_BYTES = 1 << 20


class Broken(Exception):
    """The connection failed; the next try may do better."""


def fetch_tiny_imagenet(
    data_dir: Path,
    url: str = OFFICIAL_URL,
    zip_file: Path | None = None,
    md5: str | None = OFFICIAL_MD5,
) -> Path:
    """The folder `data_dir/tiny-imagenet-200`, downloaded or unpacked from `zip_file` if need be.

    `md5=None` takes any archive of the right layout. `zip_file` is only read, never changed.
    """
    target = data_dir / FOLDER
    if _is_there(target):
        return target
    md5 = _checked(url, zip_file, md5)
    with _folder(data_dir), _locked(data_dir / f".{FOLDER}.lock"):
        if _is_there(target):  # the process that we waited for has fetched it
            return target
        if zip_file:
            unpack(zip_file, target, str(zip_file))
        else:
            part = data_dir / f"{FOLDER}.zip.part"
            _download(url, part, md5)
            try:
                unpack(part, target, url)
            except Mistake:
                part.unlink()  # a bad archive would be found bad for ever
                raise
            part.unlink()
    print(f"unpacked into {target}")
    return target


@contextlib.contextmanager
def _folder(data_dir: Path) -> Iterator[None]:
    """Make the folder where it is missing; take it away again if a mistake leaves it empty."""
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    make_data_dir(data_dir)
    try:
        yield
    except Mistake:
        for path in missing:
            if any(path.iterdir()):
                break
            path.rmdir()
        raise


def _is_there(target: Path) -> bool:
    if target.is_dir():
        print(f"{target} is already there (`python data.py check` examines it)")
    elif os.path.lexists(target):
        raise Mistake(f"{target}: not a folder; remove it, or choose another --data_dir")
    return target.is_dir()


def _checked(url: str, zip_file: Path | None, md5: str | None) -> str | None:
    """Look for mistakes while nothing is written yet; returns the md5 in lower case."""
    md5 = md5 and md5.lower()
    if md5 is not None and not re.fullmatch("[0-9a-f]{32}", md5):
        raise Mistake(f"--md5={md5}: must be 32 hexadecimal digits, or none to verify nothing")
    if zip_file is None:
        if not re.fullmatch(r"(?i)https?://[\w.:\[\]-]+(/[!-~]*)?", url, re.ASCII):
            raise Mistake(f"--url={url}: must be http://… or https://…, without spaces")
    elif not zip_file.is_file():
        raise Mistake(f"--zip={zip_file}: no such file")
    elif problem := _mismatch(zip_file, md5):
        raise Mistake(f"{zip_file}: {problem}; --md5=none takes it as it is")
    return md5


def _mismatch(path: Path, md5: str | None) -> str:
    """What is wrong with the file's size or md5; empty if nothing is, or if `md5` is None."""
    size = path.stat().st_size
    if md5 == OFFICIAL_MD5 and size != OFFICIAL_BYTES:
        return f"expected {OFFICIAL_BYTES:,} bytes, got {size:,}"
    if md5 is None:
        return ""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if got == md5 else f"expected md5 {md5}, got {got}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting for whoever has it; the file is gone afterwards."""
    while True:
        with path.open("w") as lock:
            if not locks.take(lock):
                print(f"another fetch into {path.parent} is running: waiting for it", flush=True)
                locks.wait_for(lock)
            try:  # its last holder has deleted it, and a third process may hold a new one by now
                ours = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                ours = False
            if ours:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _download(url: str, part: Path, md5: str | None) -> None:
    """Bring the whole of `url` into `part`, which may hold its beginning, and verify it."""
    furthest = have = _size(part)
    if have and md5 and not _mismatch(part, md5):
        return  # whole already: an earlier run could not unpack it, on a full disk for one
    start = f", going on after {have:,} bytes" if have else ""
    print(f"fetching Tiny ImageNet from {url}{start}", flush=True)
    tries = 0
    while True:
        try:
            _receive(url, part, OFFICIAL_BYTES if md5 == OFFICIAL_MD5 else None)
            break
        except Broken as broken:
            have = _size(part)
            # A server without ranges starts over each time: only what was never reached counts.
            tries = 0 if have > furthest else tries + 1
            furthest = max(have, furthest)
            if tries >= TRIES:
                again = f"run the same command again ({have:,} bytes are kept), or {ANOTHER}"
                raise Failure(f"{url}: {broken}, {tries} times in a row; {again}") from broken
            pause = PAUSE_SECONDS * 2**tries
            print(f"{broken} after {have:,} bytes: trying again in {pause:g} s", flush=True)
            time.sleep(pause)
    if problem := _mismatch(part, md5):
        part.unlink()
        raise Mistake(f"{url}: {problem}; deleted: try again, {ANOTHER}, or --md5=none")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, size: int | None) -> None:
    """One connection: append what is missing in `part`; Broken if that is not all of it."""
    have = _size(part)
    with _answer(url, have) as response:
        said = response.headers.get("Content-Range", "")
        if response.status == 416 and said in ("", f"bytes */{have}"):
            return  # nothing comes after what we have
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said)
        if response.status == 200:
            have, total = 0, response.length  # it ignores ranges and sends the file from its start
        elif given and int(given[1]) == have:
            total = int(given[2])
        else:  # what we have is of another file, or the server's ranges are of no use
            part.unlink(missing_ok=True)
            raise Broken(f"the server sent another range ({said})")
        if size and total not in (None, size):  # before it overwrites a good beginning
            problem = f"expected {size:,} bytes, got {total:,}"
            raise Mistake(f"{url}: {problem}; {ANOTHER}, or --md5=none")
        _append(response, part, have, total)


def _answer(url: str, have: int) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """The answer to a request for all after the first `have` bytes, of status 200, 206 or 416."""
    headers = {"User-Agent": "tinysweep"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with _network():
            request = urllib.request.Request(url, headers=headers)
            response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except (http.client.InvalidURL, ValueError) as error:
        raise Mistake(f"{url}: no valid address ({error}); {ANOTHER}") from error
    except urllib.error.HTTPError as error:
        response = error
    status = response.getcode()
    if status in (200, 206) or (status == 416 and have):
        return response
    response.close()
    if status is None or (status < 500 and status not in (408, 429)):  # None: redirected to ftp
        raise Mistake(f"{url}: the server says {status} {response.msg}; {ANOTHER}")
    raise Broken(f"the server says {status} {response.msg}")


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Tell the network's errors, after which to try again, from those of the disk."""
    try:
        yield
    except (urllib.error.HTTPError, http.client.InvalidURL):
        raise
    except (OSError, http.client.HTTPException) as error:
        raise Broken(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _append(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    """Write the body after the first `have` bytes of `part`, until `total` or its end."""
    size = {"total": total, "initial": have, "unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with (
        tqdm(desc=part.name, leave=False, disable=None, **size) as bar,
        room(part.parent, (total or have) - have),
        part.open("ab" if have else "wb") as file,
    ):
        while total is None or have < total:
            with _network():
                # read1: what has come is written before a silent connection times out.
                chunk = response.read1(min(CHUNK_BYTES, (total or have + CHUNK_BYTES) - have))
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total and have < total:
        raise Broken("the connection ended early")
