"""Archives in the layout of Tiny ImageNet's, and what is to be there after one was unpacked."""

import hashlib
import io
import random
import zipfile
from pathlib import Path

from layout import FOLDER

FILES = {"wnids.txt": b"n01\nn02\n", "words.txt": b"n01\tcat\n"} | {
    f"train/n01/images/n01_{i}.JPEG": random.Random(i).randbytes(20_000) for i in range(10)
}


def make_zip(files: dict[str, bytes], top: str = f"{FOLDER}/", extra=()) -> bytes:
    """`extra`: (name or ZipInfo, content) pairs written as they are, after the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if top:
            archive.writestr(top, b"")
        for name, content in files.items():
            archive.writestr(top + name, content)
        for name, content in extra:
            archive.writestr(name, content)
    return buffer.getvalue()


ZIP = make_zip(FILES)
MD5 = hashlib.md5(ZIP).hexdigest()


def left(data_dir: Path) -> list[str]:
    return sorted(path.name for path in data_dir.iterdir()) if data_dir.exists() else []


def assert_whole(data_dir: Path) -> None:
    """The data set, byte for byte, and nothing beside it."""
    target = data_dir / FOLDER
    found = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == FILES
    assert left(data_dir) == [FOLDER]


def one_line(info) -> str:
    message = str(info.value)
    assert message and "\n" not in message
    return message
