import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cache
import data
import decode
from cli import Failure, Mistake
from conftest import REPO, all_files, run, write_jpeg, write_tree


def cache_folder(data_dir: Path) -> Path:
    (folder,) = (data_dir / ".cache").glob("tiny-imagenet-v*")
    return folder


def test_pixels_are_those_of_the_files(data_dir, tree):
    _, found = data.get("tiny-imagenet", data_dir)
    assert found.images.shape == (42, 64, 64, 3)
    assert isinstance(found.images, np.memmap)
    for file, pixels in zip(found.files, found.images, strict=True):
        expected = np.asarray(Image.open(tree / file.decode()).convert("RGB"))
        np.testing.assert_array_equal(pixels, expected)


def test_second_call_reads_the_first_ones_cache(data_dir, monkeypatch):
    data.get("tiny-imagenet", data_dir)
    before = (cache_folder(data_dir) / "images.npy").stat()
    monkeypatch.setattr(decode, "decode", None)  # a call would raise
    _, found = data.get("tiny-imagenet", data_dir)
    assert len(found.images) == 42
    assert (cache_folder(data_dir) / "images.npy").stat().st_mtime_ns == before.st_mtime_ns


def test_a_changed_image_is_decoded_again_and_the_old_cache_goes(data_dir, tree):
    _, old = data.get("tiny-imagenet", data_dir)
    index = old.files.tolist().index(b"val/images/val_5.JPEG")
    pixels = old.images[index].copy()
    write_jpeg(tree / "val/images/val_5.JPEG", 1234)
    _, new = data.get("tiny-imagenet", data_dir)
    assert (new.images[index] != pixels).any()
    np.testing.assert_array_equal(new.images[:index], old.images[:index])
    cache_folder(data_dir)  # exactly one


def test_many_processes_decode_alike(tmp_path):
    root = write_tree(tmp_path, train=30)
    files = sorted(str(p.relative_to(root)) for p in root.glob("train/*/images/*"))
    results = []
    for processes in (1, 3):
        into = tmp_path / f"{processes}.npy"
        cache.create_images(into, len(files), 64, 64)
        chunks = list(decode.decode_files(root, files, 64, "", into, processes))
        results.append((np.load(into), np.concatenate([c.content for c in chunks])))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][0].std() > 10


LOAD = "import data, sys; from pathlib import Path; data.get('tiny-imagenet', Path(sys.argv[1]))"


def start_loading(data_dir: Path, before: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", before + LOAD, data_dir], cwd=REPO, stderr=subprocess.PIPE, text=True
    )


def test_of_two_processes_one_builds_and_the_other_waits(data_dir):
    # Each announces itself by a file, and the builder waits for the others, then half a second.
    notes = data_dir.parent / "notes"
    notes.mkdir()
    slow = (
        "import data, os, sys, time; from pathlib import Path\n"
        f"real, notes = data._decode_layout, Path({str(notes)!r})\n"
        "def build(*a):\n"
        "    (notes / f'built-{os.getpid()}').touch()\n"
        "    while len(list(notes.glob('came-*'))) < 3: time.sleep(0.01)\n"
        "    time.sleep(0.5)\n"
        "    return real(*a)\n"
        "data._decode_layout = build\n"
        "(notes / f'came-{os.getpid()}').touch()\n"
    )
    processes = [start_loading(data_dir, slow) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert len(list(notes.glob("built-*"))) == 1
    assert sum("waiting for another process" in error for error in errors) == 2


@pytest.mark.fault("cache: builder killed")
def test_a_killed_builder_leaves_nothing_that_is_used(data_dir):
    die = (
        "import data, os, signal\n"
        "def build(found, npy, check):\n"
        "    data.create_images(npy, 42, 64, 64); os.kill(os.getpid(), signal.SIGKILL)\n"
        "data._decode_layout = build\n"
    )
    process = start_loading(data_dir, die)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert cache_folder(data_dir).name.endswith(".unfinished")
    _, found = data.get("tiny-imagenet", data_dir)
    assert (found.images.reshape(42, -1).std(axis=1) > 0).all()
    assert not cache_folder(data_dir).name.endswith(".unfinished")


@pytest.mark.fault("cache: builder killed")
def test_workers_die_with_a_killed_builder(tmp_path):
    program = (
        "import pool, time, sys\n"
        "with pool.worker_pool(2) as workers:\n"
        "    pids = {workers.submit(pool.os.getpid).result() for _ in range(20)}\n"
        "    print(*pids, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids
    process.kill()
    process.wait()
    deadline = time.time() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("name", ["images.npy", "index.npz"])
@pytest.mark.parametrize("damage", ["truncated", "gone", "empty"])
@pytest.mark.fault("cache: damaged")
def test_a_damaged_cache_is_built_again(data_dir, capsys, name, damage):
    _, old = data.get("tiny-imagenet", data_dir)
    expected = np.array(old.images)
    path = cache_folder(data_dir) / name
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "truncated" else 0)
    _, new = data.get("tiny-imagenet", data_dir)
    assert "damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(new.images, expected)


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
@pytest.mark.fault("cache: disk full or not to be written")
def test_a_full_disk_is_one_line_and_leaves_nothing(data_dir, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, call, full)
    with pytest.raises(Failure, match=r"disk full: the cache .* needs 0.00 GB and .* GB are free"):
        data.get("tiny-imagenet", data_dir)
    assert all_files(data_dir / ".cache") == ["tiny-imagenet.lock"]


@pytest.mark.fault("cache: disk full or not to be written")
def test_a_really_full_disk(data_dir, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        (small / "tiny-imagenet-200").symlink_to(data_dir / "tiny-imagenet-200")
        done = run("data.py", "show", "--data_dir", small, "-o", tmp_path / "x.png")
        assert done.returncode == 1
        assert "disk full" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert all_files(small / ".cache") == ["tiny-imagenet.lock"]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.fault("cache: disk full or not to be written")
def test_a_folder_that_cannot_be_written(data_dir, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache.Path, "mkdir", refuse)  # root may write anywhere: chmod would not do
    with pytest.raises(
        Mistake, match=r"cannot be written \(Permission denied\).*link the data set"
    ):
        data.get("tiny-imagenet", data_dir)


def test_a_bad_image_leaves_no_cache(data_dir, tree):
    victim = tree / "val/images/val_5.JPEG"
    victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(Mistake, match=r"val_5.JPEG is broken"):
        data.get("tiny-imagenet", data_dir)
    assert all_files(data_dir / ".cache") == ["tiny-imagenet.lock"]
