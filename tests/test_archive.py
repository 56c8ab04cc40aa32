"""archive.py, by way of a local --zip: hostile and damaged archives, and a disk that fails."""

import errno
import os
import random
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from archives import FILES, MD5, ZIP, assert_whole, left, make_zip, one_line

import archive
import fetch
from cli import Mistake
from layout import FOLDER


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "my data"


def unpack(tmp_path: Path, data_dir: Path, content: bytes, md5: str | None = None) -> Path:
    """Fetch from a local archive, which must stay as it is."""
    local = tmp_path / "local.zip"
    local.write_bytes(content)
    try:
        return fetch.fetch_tiny_imagenet(data_dir, zip_file=local, md5=md5)
    finally:
        assert local.read_bytes() == content


def test_local_zip(tmp_path, data_dir):
    assert unpack(tmp_path, data_dir, ZIP, MD5) == data_dir / FOLDER
    assert_whole(data_dir)
    assert stat.S_IMODE((data_dir / FOLDER).stat().st_mode) == stat.S_IMODE(data_dir.stat().st_mode)


def test_local_zip_without_the_top_folder(tmp_path, data_dir):
    unpack(tmp_path, data_dir, make_zip(FILES, top=""))
    assert_whole(data_dir)


@pytest.mark.fault("fetch: wrong file, length or md5")
def test_local_zip_of_another_md5(tmp_path, data_dir):
    with pytest.raises(Mistake) as info:
        unpack(tmp_path, data_dir, ZIP, "0" * 32)
    message = one_line(info)
    assert "local.zip" in message and MD5 in message and "--md5=none" in message
    assert not data_dir.exists()


def test_local_zip_that_is_missing(tmp_path, data_dir):
    with pytest.raises(Mistake, match="missing.zip: no such file"):
        fetch.fetch_tiny_imagenet(data_dir, zip_file=tmp_path / "missing.zip")
    assert not data_dir.exists()


def member(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


ABSOLUTE = Path(f"/tmp/tinysweep-evil-{os.getpid()}")
LINK, PIPE = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644
HOSTILE = {
    "parent": (member("../evil"), "evil"),
    "parent inside": (member(f"{FOLDER}/../../evil"), "evil"),
    "absolute": (member(str(ABSOLUTE)), "evil"),
    "two slashes": (member(f"{FOLDER}//evil"), "evil"),
    "dot": (member(f"{FOLDER}/./evil"), "evil"),
    "drive": (member("C:evil"), "evil"),
    "backslash": (member(f"{FOLDER}\\evil"), "evil"),
    "long": (member(f"{FOLDER}/evil{'l' * 300}"), "evil"),
    "symlink": (member(f"{FOLDER}/evil", LINK), "evil"),
    "pipe": (member(f"{FOLDER}/evil", PIPE), "evil"),
    "folder without slash": (member(f"{FOLDER}/evil", stat.S_IFDIR | 0o755), "evil"),
    "twice": (member(f"{FOLDER}/words.txt"), "words.txt"),
    "file and folder": (member(f"{FOLDER}/words.txt/evil"), "evil"),
    "folder and file": (member(f"{FOLDER}/train/n01"), "n01"),
    "outside": (member("evil.txt"), "not Tiny ImageNet"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.fault("archive: hostile or damaged")
def test_hostile_members_are_refused(tmp_path, data_dir, case):
    info, named = HOSTILE[case]
    with pytest.raises(Mistake) as raised:
        unpack(tmp_path, data_dir, make_zip(FILES, extra=[(info, b"evil")]))
    assert named in one_line(raised)
    assert left(data_dir) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["local.zip"]
    assert not ABSOLUTE.exists()


def patched(content: bytes, name: str, at: int, value: bytes) -> bytes:
    """Overwrite a field of the central directory's entry for `name`."""
    start = content.rindex(name.encode(), 0, content.rindex(b"PK\5\6")) - 46 + at
    return content[:start] + value + content[start + len(value) :]


@pytest.mark.fault("archive: hostile or damaged")
def test_encrypted_member(tmp_path, data_dir):
    with pytest.raises(Mistake, match="words.txt.*encrypted"):
        unpack(tmp_path, data_dir, patched(ZIP, f"{FOLDER}/words.txt", 8, b"\1\0"))
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_name_with_a_zero_byte(tmp_path, data_dir):
    with pytest.raises(Mistake, match="or none at all"):
        unpack(tmp_path, data_dir, ZIP.replace(b"/words.txt", b"/words\0txt"))
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_unusual_compression(tmp_path, data_dir):
    info = member(f"{FOLDER}/odd.txt")
    info.compress_type = zipfile.ZIP_BZIP2
    with pytest.raises(Mistake, match="odd.txt.*unusual"):
        unpack(tmp_path, data_dir, make_zip(FILES, extra=[(info, b"odd")]))
    assert left(data_dir) == []


@pytest.mark.parametrize("where", ["first", "last"])  # the member's own header, the directory's
@pytest.mark.fault("archive: hostile or damaged")
def test_name_that_is_no_utf8(tmp_path, data_dir, where):
    content = bytearray(make_zip(FILES, extra=[(member(f"{FOLDER}/\xfc.txt"), b"x")]))
    at = (content.index if where == "first" else content.rindex)("\xfc".encode())
    content[at : at + 2] = b"\xff\xff"
    with pytest.raises(Mistake, match="damaged" if where == "first" else "not a whole zip"):
        unpack(tmp_path, data_dir, bytes(content))
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_member_beyond_the_end(tmp_path, data_dir):
    """Its place in 64 bits, which no file can reach."""
    info = member(f"{FOLDER}/far.txt")
    info.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    content = patched(make_zip(FILES, extra=[(info, b"far")]), info.filename, 42, b"\xff" * 4)
    with pytest.raises(Mistake, match="far.txt.*outside"):
        unpack(tmp_path, data_dir, content)
    assert left(data_dir) == []


@pytest.mark.parametrize("size", [3, 9, 1 << 20])  # words.txt has 8
@pytest.mark.fault("archive: hostile or damaged")
def test_member_that_lies_about_its_size(tmp_path, data_dir, size):
    name = f"{FOLDER}/words.txt"
    lie = patched(ZIP, name, 24, size.to_bytes(4, "little"))
    with pytest.raises(Mistake, match="words.txt.*damaged"):
        unpack(tmp_path, data_dir, lie)
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_member_is_never_written_beyond_its_declared_size(tmp_path, data_dir):
    """A megabyte that says it is 3 bytes, with the checksum of those 3: no more than 3 come out."""
    content = make_zip(FILES | {"words.txt": b"abc" + bytes(1 << 20)})
    name = f"{FOLDER}/words.txt"
    content = patched(content, name, 24, (3).to_bytes(4, "little"))
    content = patched(content, name, 16, zlib.crc32(b"abc").to_bytes(4, "little"))
    unpack(tmp_path, data_dir, content)
    assert (data_dir / FOLDER / "words.txt").read_bytes() == b"abc"


@pytest.mark.fault("archive: hostile or damaged")
def test_bomb_by_ratio(tmp_path, data_dir):
    with pytest.raises(Mistake, match="unpacks to 20,"):
        unpack(tmp_path, data_dir, make_zip({"wnids.txt": b"n01\n", "bomb": bytes(20_000_000)}))
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_bomb_by_size(tmp_path, data_dir, monkeypatch):
    total = sum(map(len, FILES.values()))
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", total - 1)
    with pytest.raises(Mistake, match=f"unpacks to {total:,}"):
        unpack(tmp_path, data_dir, ZIP)
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", total)
    unpack(tmp_path, data_dir, ZIP)
    assert_whole(data_dir)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", ZIP[: len(ZIP) // 2], ZIP[:-30], ZIP[-3000:]],
)
@pytest.mark.fault("archive: hostile or damaged")
def test_not_a_whole_zip(tmp_path, data_dir, content):
    with pytest.raises(Mistake, match=r"local\.zip: "):
        unpack(tmp_path, data_dir, content)
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_not_tiny_imagenet(tmp_path, data_dir):
    with pytest.raises(Mistake, match="not Tiny ImageNet"):
        unpack(tmp_path, data_dir, make_zip({"classes.txt": b"n01\n"}))
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_flipped_bit_is_seen_without_md5(tmp_path, data_dir):
    middle = len(ZIP) // 2  # inside a JPEG
    flipped = ZIP[:middle] + bytes([ZIP[middle] ^ 1]) + ZIP[middle + 1 :]
    with pytest.raises(Mistake, match="n01_.*JPEG.*damaged"):
        unpack(tmp_path, data_dir, flipped)
    assert left(data_dir) == []


@pytest.mark.fault("archive: hostile or damaged")
def test_random_damage_never_gives_a_traceback(tmp_path, data_dir):
    """Two damaged bytes anywhere: refused in one line, or unpacked where they do not matter."""
    dice, small = random.Random(0), make_zip({"wnids.txt": b"n01\nn02\n", "val/a.txt": b"a" * 40})
    refused = 0
    for _ in range(400):
        content = bytearray(small)
        for _ in range(2):
            content[dice.randrange(len(content))] = dice.randrange(256)
        try:
            unpack(tmp_path, data_dir, bytes(content))
        except Mistake as mistake:
            refused += 1
            assert "\n" not in str(mistake) and left(data_dir) == []
        else:
            assert left(data_dir) == [FOLDER]
            shutil.rmtree(data_dir / FOLDER)
    assert refused > 200


@pytest.mark.fault("archive: hostile or damaged")
def test_ctrl_c_while_unpacking(tmp_path, data_dir, monkeypatch):
    def interrupted(source, file):
        assert list(data_dir.glob(f".{FOLDER}.*/*"))  # something is there to be removed
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path, data_dir, ZIP)
    assert left(data_dir) == []


def test_other_errors_of_the_disk_are_not_hidden(tmp_path, data_dir, monkeypatch):
    def broken(source, file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", broken)
    with pytest.raises(OSError, match="Input/output"):
        unpack(tmp_path, data_dir, ZIP)
    assert left(data_dir) == []
