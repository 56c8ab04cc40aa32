import os
import shutil

import numpy as np
import pytest

import layout
from cli import Mistake
from conftest import WNIDS, write_jpeg
from layout import NO_BOX


def read(tree):
    return layout.read_images(layout.read_layout(tree))


def test_official_layout(tree):
    images = read(tree)
    assert len(images.files) == 42
    assert images.is_val.sum() == 12
    assert np.bincount(images.labels).tolist() == [14, 14, 14]
    for file, label, box in zip(images.files, images.labels, images.boxes, strict=True):
        name = file.rsplit("/", 1)[1]
        number = int(name.rsplit("_", 1)[1].removesuffix(".JPEG"))
        if file.startswith("train/"):
            assert file.startswith(f"train/{WNIDS[label]}/images/")
            assert box.tolist() == [number, label, 60, 50]
        else:
            assert label == number // 4
            assert box.tolist() == [number % 4, 7, 40, 63]


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("annotations", [True, False])
def test_val_sorted_into_class_folders(tree, inner, annotations):
    before = read(tree)
    val = [i for i, file in enumerate(before.files) if before.is_val[i]]
    for i in val:
        target = tree / "val" / WNIDS[before.labels[i]] / inner
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(tree / before.files[i], target)
    if not annotations:
        (tree / "val/val_annotations.txt").unlink()
    shutil.rmtree(tree / "val/images")
    after = read(tree)

    def facts(images, with_boxes):
        rows = zip(images.files, images.labels, images.is_val, images.boxes.tolist(), strict=True)
        return {
            (f.rsplit("/")[-1], int(n), bool(v), str(b) if with_boxes else "")
            for f, n, v, b in rows
        }

    assert facts(after, annotations) == facts(before, annotations)
    if not annotations:
        assert (after.boxes[after.is_val] == NO_BOX).all()


def test_train_folders_without_images_inside(tree):
    before = read(tree)
    for wnid in WNIDS:
        for image in (tree / "train" / wnid / "images").iterdir():
            shutil.move(image, tree / "train" / wnid)
        (tree / "train" / wnid / "images").rmdir()
    after = read(tree)
    assert after.labels.tolist() == before.labels.tolist()
    assert after.boxes.tolist() == before.boxes.tolist()


def test_names_are_the_first_of_words(tree):
    assert layout.read_names(tree, WNIDS) == ("Egyptian cat", "goldfish", "n00000002")


def test_a_subset_of_the_classes_leaves_out_their_val_images(tree):
    (tree / "wnids.txt").write_text("\n".join(WNIDS[:2]))
    images = read(tree)
    assert len(images.files) == 28
    assert images.labels.max() == 1


def test_what_macos_puts_beside_the_images_is_none(tree):
    before = read(tree)
    for folder in (tree / f"train/{WNIDS[0]}/images", tree / "val/images"):
        (folder / "._0.JPEG").write_bytes(b"Mac OS X")
    assert list(read(tree).files) == list(before.files)


def test_image_without_box_and_box_without_image(tree):
    path = tree / f"train/{WNIDS[0]}/{WNIDS[0]}_boxes.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[1:], "gone.JPEG\t1\t2\t3\t4"]))
    images = read(tree)
    assert len(images.files) == 42
    assert (images.boxes == NO_BOX).all(1).sum() == 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 63, 63), False),
        ((5, 5, 6, 6), False),
        ((5, 5, 5, 9), True),
        ((5, 9, 8, 9), True),
        ((9, 5, 5, 9), True),
        ((-2, 0, 5, 5), True),
        ((0, 0, 64, 5), True),
        ((NO_BOX,) * 4, False),
    ],
)
def test_degenerate_boxes(box, expected):
    assert layout.degenerate(np.array([box], np.int16)).tolist() == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "val_0.JPEG\tn00000003\t1\t2\t3",
        "val_0.JPEG\tn00000003\t1\t2\t3\tx",
        "nonsense",
        "val_0.JPEG\tn00000003\t1\t2\t3\t4\t5",
        "val_0.JPEG\tn00000003\t1\t2\t3\t1e9",
        "val_0.JPEG\tn00000003\t1\t2\t3\t99999999999",
    ],
)
@pytest.mark.fault("data: classes, files or annotations that are missing or broken")
def test_broken_annotation_line_is_named(tree, line):
    path = tree / "val/val_annotations.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:4], line, *rows[5:]]))
    with pytest.raises(Mistake, match=r"val_annotations.txt, line 5"):
        read(tree)


@pytest.mark.fault("data: classes, files or annotations that are missing or broken")
def test_val_image_without_annotation_is_named(tree):
    write_jpeg(tree / "val/images/val_999.JPEG", 999)
    with pytest.raises(Mistake, match=r"val_annotations.txt has no line for val_999.JPEG"):
        read(tree)


@pytest.mark.parametrize("wnids", ["", "n1\n", "n1\nn1\n", "../n1\nn2\n", ".\nn2\n", "n3\nn4"])
@pytest.mark.fault("data: classes, files or annotations that are missing or broken")
def test_wnids_that_list_no_classes(tree, wnids):
    (tree / "wnids.txt").write_text(wnids, encoding="utf-16" if "n3" in wnids else "utf-8")
    with pytest.raises(Mistake, match=r"wnids.txt"):
        layout.read_layout(tree)


CHANGES = {
    "an image added": lambda t: write_jpeg(t / f"train/{WNIDS[0]}/images/{WNIDS[0]}_77.JPEG", 77),
    "an image removed": lambda t: (t / f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG").unlink(),
    "an image renamed": lambda t: (t / f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG").rename(
        t / f"train/{WNIDS[0]}/images/{WNIDS[0]}_1b.JPEG"
    ),
    "an image written again in place": lambda t: write_jpeg(t / "val/images/val_3.JPEG", 78),
    "an image's time of change": lambda t: os.utime(t / "val/images/val_3.JPEG", ns=(1, 1)),
    "val annotations": lambda t: os.utime(t / "val/val_annotations.txt", ns=(1, 1)),
    "train boxes": lambda t: (t / f"train/{WNIDS[2]}/{WNIDS[2]}_boxes.txt").unlink(),
    "names": lambda t: (t / "words.txt").write_text("n00000001\tfish\n"),
    "order of classes": lambda t: (t / "wnids.txt").write_text("\n".join(sorted(WNIDS))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with(tree, change):
    before = layout.read_layout(tree).key()
    assert layout.read_layout(tree).key() == before
    CHANGES[change](tree)
    assert layout.read_layout(tree).key() != before


def test_many_classes_are_listed_in_parallel_alike(tmp_path, monkeypatch):
    wnids = [f"n{i:08d}" for i in range(12)]
    for i, wnid in enumerate(wnids):
        write_jpeg(tmp_path / f"train/{wnid}/images/{wnid}_0.JPEG", i)
    (tmp_path / "wnids.txt").write_text("\n".join(wnids))
    alone = layout.read_layout(tmp_path)
    monkeypatch.setattr(layout, "MANY_CLASSES", 10)
    called = []
    assert layout.read_layout(tmp_path, lambda: called.append("meanwhile")) == alone
    assert called == ["meanwhile"]
    assert len(alone.folders) == 12
