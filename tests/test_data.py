"""The commands of data.py, as a user types them."""

import os
import shutil
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from small_cifar10 import write_cifar10

import cifar10
import data
import layout
from cli import Failure, Mistake
from conftest import WNIDS, all_files, assert_mistake, run, write_jpeg


def check(data_dir: Path):
    return run("data.py", "check", "--data_dir", data_dir)


def test_check_counts_what_is_there(data_dir, tree):
    train = tree / "train"
    twin = train / WNIDS[0] / "images" / f"{WNIDS[0]}_3.JPEG"
    shutil.copy(twin, train / WNIDS[1] / "images" / f"{WNIDS[1]}_3.JPEG")  # contradicts
    shutil.copy(twin, tree / "val/images/val_4.JPEG")  # contradicts, across train and val
    boxes = train / WNIDS[2] / f"{WNIDS[2]}_boxes.txt"
    boxes.write_text(boxes.read_text().replace("\t60\t50", "\t0\t50", 1))
    done = check(data_dir)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "3 classes, 42 images" in text
    assert "30 images, 10 a class (the official set has 500)" in text
    assert "12 images, 4 a class (the official set has 50)" in text
    assert "greyscale 1 (1 train, 0 val)" in text
    # Three identical files are three pairs: one within class 1, whose val image is the third.
    assert (
        "2 pairs with two different labels (1 of them across train and val), 1 with the same"
        in text
    )
    assert "boxes 42, 1 of them degenerate (1 train, 0 val)" in text
    assert "nothing here stands in the way" in text
    assert done.stderr == ""


def test_check_takes_the_folder_itself(tree):
    assert check(tree).returncode == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


BAD_IMAGES = {  # how an image is spoilt: what check and training say of it
    "truncated": (truncate, "is broken", "unreadable: 1"),
    "without its last byte": (
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        "is broken",
        "unreadable: 1",
    ),
    "empty": (lambda p: p.write_bytes(b""), "is no image", "unreadable: 1"),
    "a text": (lambda p: p.write_text("no image"), "is no image", "unreadable: 1"),
    "of another size": (
        lambda p: write_jpeg(p, 1, size=(64, 63)),
        "is 64x63, not 64x64",
        "wrong size: 1",
    ),
    "huge": (lambda p: write_jpeg(p, 1, size=(3000, 20)), "is 3000x20, not 64x64", "wrong size: 1"),
    "cmyk": (
        lambda p: Image.new("CMYK", (64, 64)).save(p, "JPEG"),
        "colour mode CMYK",
        "colour mode: 1",
    ),
    "16 bits": (
        lambda p: Image.fromarray(np.zeros((64, 64), np.uint16)).save(p, "PNG"),
        "colour mode I;16",
        "colour mode: 1",
    ),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "Is a directory", "unreadable: 1"),
    "a link to nowhere": (
        lambda p: (p.unlink(), p.symlink_to("nowhere")),
        "No such file",
        "unreadable: 1",
    ),
}


@pytest.mark.fault("data: a bad image")
@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_a_bad_image(data_dir, tree, bad):
    spoil, text, counted = BAD_IMAGES[bad]
    spoil(tree / f"train/{WNIDS[1]}/images/{WNIDS[1]}_7.JPEG")
    done = check(data_dir)
    assert_mistake(done, "1 images cannot be used")
    assert any(f"{WNIDS[1]}_7.JPEG" in line and text in line for line in done.stdout.splitlines())
    assert counted in done.stdout
    before = all_files(data_dir)
    training = run("data.py", "show", "--data_dir", data_dir, "-o", data_dir / "x.png")
    assert_mistake(training, f"{WNIDS[1]}_7.JPEG", text, "python data.py check")
    assert [f for f in all_files(data_dir) if ".cache" not in f] == before
    assert not list((data_dir / ".cache").glob("*v*"))


def remove(*parts: str):
    def spoil(tree: Path):
        path = tree.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def empty(*parts: str):
    def spoil(tree: Path):
        for file in tree.joinpath(*parts).iterdir():
            file.unlink()

    return spoil


BAD_TREES = {
    "no folder at all": (lambda tree: shutil.rmtree(tree), ("--data_dir", "python data.py fetch")),
    "no list of classes": (remove("wnids.txt"), ("wnids.txt is missing", "python data.py fetch")),
    "a class is gone": (remove("train", WNIDS[1]), (WNIDS[1], "is missing")),
    "a class is empty": (empty("train", WNIDS[1], "images"), (WNIDS[1], "has no images")),
    "train is gone": (remove("train"), (WNIDS[0], "is missing")),
    "broken val annotation": (
        lambda tree: (tree / "val/val_annotations.txt").write_text("val_0.JPEG\tx\n"),
        ("val_annotations.txt, line 1",),
    ),
    "broken box": (
        lambda tree: (tree / f"train/{WNIDS[0]}/{WNIDS[0]}_boxes.txt").write_text("a b c\n"),
        (f"{WNIDS[0]}_boxes.txt, line 1",),
    ),
    "val annotations are gone": (
        remove("val", "val_annotations.txt"),
        ("val_annotations.txt has no line",),
    ),
}


@pytest.mark.parametrize("bad", BAD_TREES)
@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.fault("data: classes, files or annotations that are missing or broken")
def test_a_bad_tree(data_dir, tree, bad, command):
    spoil, words = BAD_TREES[bad]
    spoil(tree)
    before = all_files(data_dir)
    output = ["-o", data_dir / "x.png"] if command == "show" else []
    assert_mistake(run("data.py", command, "--data_dir", data_dir, *output), *words)
    left = [f for f in all_files(data_dir) if f not in (".cache", ".cache/tiny-imagenet.lock")]
    assert left == before


MISTAKES = {
    "data_dir is a file": (["check", "--data_dir", "FILE"], ["is a file"]),
    "data_dir is missing": (
        ["check", "--data_dir", "nowhere"],
        ["nowhere", "python data.py fetch"],
    ),
    "shapes into a file": (["shapes", "--data_dir", "FILE"], ["FILE: not a folder"]),
    "shapes below a file": (["show", "--dataset=shapes", "--data_dir=FILE/x"], ["not a folder"]),
    "cifar10 into a file": (["fetch", "--dataset=cifar10", "--data_dir=FILE"], ["not a folder"]),
    "unknown flag": (["check", "--datadir=x"], ["--datadir", "did you mean '--data_dir'"]),
    "unknown command": (["chekc"], ["chekc", "check"]),
    "no command": ([], ["COMMAND"]),
    "unknown data set": (["check", "--dataset=shape"], ["shape", "tiny-imagenet"]),
    "strength too large": (
        ["show", "--dataset=shapes", "--aug_strength=2.5"],
        ["aug_strength=2.5", "0 to 2"],
    ),
    "strength is not a number": (["show", "--dataset=shapes", "--aug_strength=nan"], ["nan"]),
    "too few shapes": (["shapes", "--classes=1"], ["classes"]),
    "no images": (["shapes", "--train_per_class=0"], ["train_per_class"]),
    "no cifar10": (["check", "--dataset=cifar10"], ["fetch --dataset=cifar10"]),
    "zip is missing": (["fetch", "--zip=nowhere.zip"], ["nowhere.zip"]),
    "zip is no zip": (["fetch", "--zip=FILE", "--md5=none"], ["zip"]),
    "zip has another md5": (["fetch", "--zip=FILE"], ["md5"]),
    "url is none": (["fetch", "--url=file:///etc/passwd"], ["http"]),
    "output folder is missing": (["show", "--dataset=shapes", "-o", "no/where.png"], ["no"]),
    "output is no picture": (["show", "--dataset=shapes", "-o", "x.txt"], ["x.txt", ".png"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_on_the_command_line(tmp_path, mistake):
    arguments, words = MISTAKES[mistake]
    (tmp_path / "FILE").write_text("something")
    done = run("data.py", *arguments, cwd=tmp_path)
    assert_mistake(done, *words)
    assert all_files(tmp_path) == ["FILE"]


def test_a_zip_that_leaves_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n1\nn2\n")
        archive.writestr("tiny-imagenet-200/../../evil.txt", "evil")
    done = run(
        "data.py", "fetch", "--zip=evil.zip", "--md5=none", "--data_dir=inner/data", cwd=tmp_path
    )
    assert_mistake(done, "evil.txt")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list(tmp_path.rglob("wnids.txt"))


def test_fetch_of_a_local_zip_then_check(tmp_path, tree):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for file in tree.rglob("*"):
            archive.write(file, Path("tiny-imagenet-200") / file.relative_to(tree))
    target = tmp_path / "a folder with spaces"
    for _ in range(2):
        done = run(
            "data.py", "fetch", "--zip", tmp_path / "some.zip", "--md5=none", "--data_dir", target
        )
        assert done.returncode == 0, done.stderr
    assert all_files(target / "tiny-imagenet-200") == all_files(tree)
    assert check(target).returncode == 0


def test_shapes_then_show(tmp_path):
    done = run("data.py", "shapes", "--train_per_class=5", "--val_per_class=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data/shapes: 80 images of 10 classes" in done.stdout
    picture = tmp_path / "augmented.png"
    done = run("data.py", "show", "--dataset=shapes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = Image.open(picture)
    assert min(rows.size) > 500
    assert len(data.get("shapes", tmp_path / "data")[1].images) == 80  # not generated anew
    done = run("data.py", "check", "--dataset=shapes", cwd=tmp_path)
    assert "10 classes, 80 images" in done.stdout


def test_shapes_are_generated_on_first_use(tmp_path):
    loaded = data.load("shapes", tmp_path)
    assert (len(loaded.train), len(loaded.val)) == (700, 300)
    assert loaded.images.shape == (1000, 64, 64, 3)
    mean = loaded.images.mean(axis=(0, 1, 2)) / 255
    std = loaded.images.reshape(-1, 3).std(axis=0) / 255
    np.testing.assert_allclose(data.NORMALIZATIONS["shapes"], (mean, std), atol=0.01)


def test_cifar10_is_read_through_torchvision(tmp_path, monkeypatch):
    """A small archive in the published format; its md5s take the place of the published ones."""
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    for attribute, value in write_cifar10(tmp_path, per_batch=20).items():
        monkeypatch.setattr(CIFAR10, attribute, value)
    cifar10.fetch(tmp_path)  # unpacks what is there
    names = [f"class {i}" for i in range(10)]
    for split in ("pooled", "official"):  # the real test set validates in any case
        loaded = data.load("cifar10", tmp_path, split=split)
        assert loaded.train.tolist() == list(range(100))
        assert loaded.val.tolist() == list(range(100, 120))
    assert loaded.images.shape == (120, 32, 32, 3)
    row = pickle.loads((folder / "test_batch").read_bytes())["data"][3]
    np.testing.assert_array_equal(loaded.images[103], row.reshape(3, 32, 32).transpose(1, 2, 0))
    assert [loaded.class_name(i) for i in range(10)] == names
    (folder / "data_batch_2").write_bytes(b"altered")
    with pytest.raises(Mistake, match="is not whole; remove it and get it again"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("File not found or corrupted."),
        ConnectionResetError(104, "reset"),
        URLError("no"),
    ],
)
def test_cifar10_that_does_not_arrive(tmp_path, monkeypatch, error):
    import torchvision.datasets

    def fail(*_arguments, **_named):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(Failure, match="CIFAR-10 could not be downloaded .*try again, or put"):
        cifar10.fetch(tmp_path)


def test_the_middle_of_the_images(data_dir, tree):
    boxes_file = tree / f"train/{WNIDS[0]}/{WNIDS[0]}_boxes.txt"
    rows = [line.split("\t") for line in boxes_file.read_text().splitlines()]
    # over the margin, in the margin, without an area, outside: what is left of 8..55 is 0..47
    changed = [(0, 2, 63, 50), (0, 0, 7, 63), (20, 20, 20, 30), (10, 10, 70, 30), (10, 10, 30, 30)]
    for row, box in zip(rows, changed, strict=False):
        row[1:] = map(str, box)
    boxes_file.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    whole = data.load("tiny-imagenet", data_dir)
    part = data.load("tiny-imagenet", data_dir, center_crop=48)
    np.testing.assert_array_equal(part.images, whole.images[:, 8:56, 8:56])
    assert part.fingerprint == whole.fingerprint
    found = {part.file(i).split("/")[-1]: part.cache.boxes[i] for i in range(len(part.labels))}
    crops = [found[row[0]] for row in rows]
    assert crops[0].tolist() == [0, 0, 47, 42]
    assert crops[4].tolist() == [2, 2, 22, 22]
    assert layout.degenerate(np.array(crops[1:4])).all()
    with pytest.raises(Mistake, match="center_crop=65 is more than the images have: 64 px"):
        data.load("tiny-imagenet", data_dir, center_crop=65)


def test_the_middle_of_images_without_boxes():
    boxes = np.full((2, 4), layout.NO_BOX, np.int16)
    images = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    cache = data.Cache(images, *(np.zeros(2) for _ in range(2)), boxes, *(np.zeros(2),) * 4)
    cropped = data.crop_cache(cache, 3)  # an odd margin: one row more is lost below and right
    np.testing.assert_array_equal(cropped.images, images[:, 1:4, 1:4])
    assert (cropped.boxes == layout.NO_BOX).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_no_text_is_a_name(data_dir, tree):
    """Latin-1, from an old archive."""
    images = tree / "train" / WNIDS[0] / "images"
    path = images / os.fsdecode(b"caf\xe9.JPEG")
    shutil.copy(images / f"{WNIDS[0]}_3.JPEG", path)
    loaded = data.load("tiny-imagenet", data_dir)
    assert str(path.relative_to(tree)) in [loaded.file(i) for i in range(len(loaded.labels))]


def test_a_subset_is_a_data_set_of_its_own(data_dir, tmp_path):
    call = ["subset", str(tmp_path / "small"), "--classes=2", f"--data_dir={data_dir}"]
    done = run("data.py", *call, "--images=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'small'}: 10 training images of 2 classes, by links\n"
    whole, small = (data.load("tiny-imagenet", one) for one in (data_dir, tmp_path / "small"))
    assert list(small.cache.names) == list(whole.cache.names[:2])
    assert len(small.labels) == 2 * (5 + 4)
    where = {name: place for place, name in enumerate(whole.cache.files)}
    same = [where[name] for name in small.cache.files]
    np.testing.assert_array_equal(small.images, whole.images[same])
    np.testing.assert_array_equal(small.cache.boxes, whole.cache.boxes[same])
    for folder, flag, words in (
        ("small", "--classes=2", "is there already"),
        ("other", "--classes=4", "classes=4: there are 2 to 3"),
        ("other", "--images=0", "images=0"),
    ):
        with pytest.raises(Mistake, match=words):
            data.main(["subset", f"{tmp_path}/{folder}", "--classes=2", flag, call[3]])
    assert sorted(os.listdir(tmp_path)) == ["data", "small"]
