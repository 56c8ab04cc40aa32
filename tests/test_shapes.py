"""The built-in data set: its layout, its boxes, and that it is whole or absent whatever happens."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

import layout
import shapes
from cli import Mistake
from shapes import SHAPES, draw, write_shapes

REPO = Path(shapes.__file__).parent
EACH = 30  # pictures of each class


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """4 classes with 5 training and 3 validation images each."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, classes=4, train_per_class=5, val_per_class=3)
    return root


@pytest.fixture(scope="module")
def pictures() -> list[shapes.Picture]:
    return [draw(label, "train", i) for label in range(len(SHAPES)) for i in range(EACH)]


def files(root: Path) -> dict[str, bytes]:
    """Every file but the stamp."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != shapes.STAMP)
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def table(path: Path) -> dict[str, list[str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1:] for row in rows}


def rgb(picture: shapes.Picture) -> np.ndarray:
    return np.array(Image.fromarray(picture.image).convert("RGB"), np.float32)


def test_the_folder_holds_what_tiny_imagenet_holds(root):
    wnids = (root / "wnids.txt").read_text().splitlines()
    assert len(set(wnids)) == 4 and wnids != sorted(wnids)
    expected = {"wnids.txt", "words.txt", "val/val_annotations.txt"}
    expected |= {f"val/images/val_{i}.JPEG" for i in range(12)}
    for wnid in wnids:
        expected.add(f"train/{wnid}/{wnid}_boxes.txt")
        expected |= {f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(5)}
    assert set(files(root)) == expected
    words = table(root / "words.txt")
    assert len(words) > 4 and words[wnids[3]] == ["five-pointed star, pentagram"]
    assert {wnid for wnid in words if wnid[0] != "n" or len(wnid) != 9} == set()


def test_files_hold_the_pictures_and_tables_their_boxes(root):
    wnids = (root / "wnids.txt").read_text().splitlines()
    val = table(root / "val/val_annotations.txt")
    assert len(val) == 12
    found = {}
    for label, wnid in enumerate(wnids):
        for i, (file, row) in enumerate(item for item in val.items() if item[1][0] == wnid):
            found[label, "val", i] = "val/images", file, row[1:]
        rows = table(root / f"train/{wnid}/{wnid}_boxes.txt")
        assert list(rows) == [f"{wnid}_{i}.JPEG" for i in range(5)]
        for i, (file, row) in enumerate(rows.items()):
            found[label, "train", i] = f"train/{wnid}/images", file, row
    assert len(found) == 4 * (5 + 3)
    for key, (folder, file, box) in found.items():
        picture = draw(*key)
        assert tuple(map(int, box)) == picture.box
        with Image.open(root / folder / file) as image:
            pixels = np.array(image.convert("RGB"), np.float32)
        # 4:2:0 at quality 75 blurs colours; another picture would be off by 50 and more.
        assert np.abs(pixels - rgb(picture)).mean() < 14, key


def test_images_are_jpegs_like_the_real_ones(root, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "75.jpg", quality=75)
    with Image.open(tmp_path / "75.jpg") as image:
        tables = image.quantization
    for path in root.rglob("*.JPEG"):
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))
            assert image.mode in ("RGB", "L")
            assert image.quantization[0] == tables[0]
            if image.mode == "RGB":
                assert image.quantization == tables
                assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0


def test_our_own_reader_reads_it(root):
    images = layout.read_images(layout.read_layout(root))
    assert np.bincount(images.labels[images.is_val]).tolist() == [3] * 4
    assert np.bincount(images.labels[~images.is_val]).tolist() == [5] * 4
    assert not layout.degenerate(images.boxes).any() and images.boxes.min() >= 0
    names = layout.read_names(root, layout.read_wnids(root))
    assert names == ("disc", "square", "triangle", "five-pointed star")


def test_boxes_are_tight(pictures):
    for picture in pictures:
        x0, y0, x1, y1 = picture.box
        inside = np.zeros((64, 64), bool)
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
        assert picture.mask[~inside].max() < shapes.COVERED
        sides = picture.mask[y0, :], picture.mask[y1, :], picture.mask[:, x0], picture.mask[:, x1]
        assert min(side.max() for side in sides) >= shapes.COVERED


def test_the_mask_is_where_the_object_is_seen(pictures):
    """The object differs in lightness from what is around it, so the box is that of the picture."""
    contrasts = []
    for picture in pictures:
        x0, y0, x1, y1 = picture.box
        light = rgb(picture).mean(2)
        near = np.zeros((64, 64), bool)
        near[max(y0 - 6, 0) : y1 + 7, max(x0 - 6, 0) : x1 + 7] = True
        ground = light[near & (picture.mask == 0)]
        contrasts.append(abs(np.median(light[picture.mask == 1]) - np.median(ground)))
    assert np.mean(np.array(contrasts) > 25) > 0.95


def test_objects_are_small_and_mostly_off_the_centre(pictures):
    boxes = np.array([picture.box for picture in pictures])
    cover = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1) / 64**2
    assert cover.min() > 0.05 and cover.max() < 0.4 and 0.15 < cover.mean() < 0.25
    centred = (boxes[:, :2] <= 32).all(1) & (boxes[:, 2:] >= 32).all(1)
    assert 0.4 < centred.mean() < 0.65


def test_few_are_grey_and_none_are_alike(pictures):
    assert 0.008 < np.mean([picture.image.ndim == 2 for picture in pictures]) < 0.035
    assert len({picture.image.tobytes() for picture in pictures}) == len(pictures)


def test_the_outline_tells_the_class(pictures):
    """Masks cut to their box: the most alike of the others, also mirrored, is of the same class."""
    cut = [p.mask[p.box[1] : p.box[3] + 1, p.box[0] : p.box[2] + 1] for p in pictures]
    cut = np.array([cv2.resize(mask, (16, 16)) for mask in cut]).reshape(len(SHAPES), EACH, 16, 16)
    known = np.concatenate([cut[:, :15], cut[:, :15, :, ::-1]], 1)
    distance = ((cut[:, 15:, None, None] - known[None, None]) ** 2).sum((-1, -2)).min(-1)
    right = distance.argmin(-1) == np.arange(len(SHAPES))[:, None]
    assert right.mean() > 0.97 and right.mean(1).min() > 0.8


def test_the_colour_only_hints_at_the_class(pictures):
    """Of the ten classes that are used when nobody says how many."""
    hues = np.array([shape.hue for shape in SHAPES[:10]])
    right = []
    for i, picture in enumerate(pictures[: 10 * EACH]):
        colour = rgb(picture)[picture.mask == 1].mean(0)
        hue = cv2.cvtColor(colour[None, None] / 255, cv2.COLOR_RGB2HSV)[0, 0, 0] / 360
        away = np.abs((hue - hues + 0.5) % 1 - 0.5)
        right.append(away.argmin() == i // EACH)
    assert 0.6 < np.mean(right) < 0.92


def test_more_images_or_classes_leave_the_earlier_ones_as_they_were(root, tmp_path):
    write_shapes(tmp_path / "same", classes=4, train_per_class=5, val_per_class=3)
    assert files(tmp_path / "same") == files(root)
    write_shapes(tmp_path / "more", classes=4, train_per_class=6, val_per_class=4)
    few, more = files(root), files(tmp_path / "more")
    assert set(few) < set(more)
    assert {name for name in few if few[name] != more[name]} == {
        name for name in few if name.endswith(("boxes.txt", "annotations.txt"))
    }
    write_shapes(tmp_path / "classes", classes=5, train_per_class=5, val_per_class=3)
    classes = files(tmp_path / "classes")
    assert all(few[name] == classes[name] for name in few if name.startswith("train/"))


def test_another_seed_or_part_gives_other_pictures():
    images = [draw(2, *key).image.tobytes() for key in (("train", 1), ("val", 1), ("train", 1, 7))]
    assert len(set(images)) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "classes=1: the shapes data set has 2 to 14"),
        ({"classes": 15}, "classes=15: "),
        ({"train_per_class": 0}, "train_per_class=0: "),
        ({"val_per_class": -2}, "val_per_class=-2: "),
    ],
)
def test_wrong_numbers_are_named_and_write_nothing(tmp_path, wrong, message):
    with pytest.raises(Mistake, match=message):
        write_shapes(tmp_path / "shapes", **wrong)
    assert list(tmp_path.iterdir()) == []


SMALL = {"classes": 2, "train_per_class": 1, "val_per_class": 1}


def test_a_second_call_writes_nothing_and_another_request_writes_all(tmp_path, monkeypatch):
    root = tmp_path / "new folder" / "shapes"
    write_shapes(root, **SMALL)
    os.utime(root / "wnids.txt", (0, 0))

    def written_again() -> bool:
        again = (root / "wnids.txt").stat().st_mtime != 0
        os.utime(root / "wnids.txt", (0, 0))
        return again

    lock = root.parent / ".shapes.lock"
    lock.unlink()
    write_shapes(root, **SMALL)
    # Not even the lock: a set that is complete can be used from a disk that cannot be written to.
    assert not written_again() and not lock.exists()
    write_shapes(root, **SMALL, seed=3)
    assert written_again()
    write_shapes(root, **SMALL | {"val_per_class": 2}, seed=3)
    assert written_again() and len(list((root / "val/images").iterdir())) == 4
    write_shapes(root, **SMALL, seed=3)
    assert written_again() and len(list((root / "val/images").iterdir())) == 2
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    write_shapes(root, **SMALL, seed=3)
    assert written_again()
    (root / shapes.STAMP).write_text("{broken")
    write_shapes(root, **SMALL, seed=3)
    assert written_again() and json.loads((root / shapes.STAMP).read_text())["seed"] == 3
    assert sorted(os.listdir(root.parent)) == [".shapes.lock", "shapes"]


def test_files_of_others_are_left_alone(tmp_path):
    folder, file, empty = tmp_path / "photos", tmp_path / "notes", tmp_path / "empty"
    folder.mkdir(), empty.mkdir()
    (folder / "cat.jpg").write_text("a cat")
    file.write_text("a note")
    for root in (folder, file):
        with pytest.raises(Mistake, match=root.name):
            write_shapes(root, **SMALL)
    assert (folder / "cat.jpg").read_text() == "a cat" and file.read_text() == "a note"
    write_shapes(empty, **SMALL)
    assert (empty / "wnids.txt").exists()


def test_a_full_disk_leaves_the_set_that_was_there(tmp_path, monkeypatch):
    root = tmp_path / "shapes"
    write_shapes(root, **SMALL)
    before = files(root)
    written = []

    def write_bytes(path, data):
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.open("wb").write(data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        write_shapes(root, classes=3, train_per_class=2, val_per_class=2)
    monkeypatch.undo()
    assert files(root) == before and len(written) == 5
    assert sorted(os.listdir(tmp_path)) == [".shapes.lock", "shapes"]


def start(code: str, *args: object) -> subprocess.Popen:
    code = "import sys; from pathlib import Path; import shapes; root = Path(sys.argv[1]);" + code
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=REPO)


def test_of_several_processes_one_writes_and_nobody_sees_half_a_set(tmp_path):
    code = """
write = shapes._write
def noted(*args):
    print("one writes", file=open(sys.argv[2], "a"))
    write(*args)
shapes._write = noted
shapes.write_shapes(root, classes=3, train_per_class=40, val_per_class=20)
assert len(list((root / "val/images").iterdir())) == 60
"""
    root, notes = tmp_path / "shapes", tmp_path / "notes"
    processes = [start(code, root, notes) for _ in range(3)]
    deadline = time.monotonic() + 120
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        if root.exists():
            assert len(files(root)) == 3 * 41 + 60 + 3
        time.sleep(0.005)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert notes.read_text() == "one writes\n"
    assert sorted(os.listdir(tmp_path)) == [".shapes.lock", "notes", "shapes"]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path):
    root = tmp_path / "shapes"
    process = start("shapes.write_shapes(root, train_per_class=100_000)", root)
    leftover = tmp_path / f".shapes.{process.pid}.new"
    while not (leftover / "train").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftover.exists() and not root.exists()
    (tmp_path / ".shapes.1.old").mkdir()
    (tmp_path / ".shapes.notes").mkdir()
    write_shapes(root, **SMALL)
    assert sorted(os.listdir(tmp_path)) == [".shapes.lock", ".shapes.notes", "shapes"]
    assert len(files(root)) == 2 + 2 + 2 + 3


def test_ctrl_c_cleans_up(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_jpeg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", **SMALL)
    assert os.listdir(tmp_path) == [".shapes.lock"]


def test_no_bar_where_there_is_no_terminal(tmp_path, capfd):
    write_shapes(tmp_path / "shapes", **SMALL)
    assert capfd.readouterr() == ("", "")
