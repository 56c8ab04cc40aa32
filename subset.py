"""A data folder with fewer classes and images than another one, by links: for a quick try."""

import os
import shutil
from pathlib import Path

import layout
from cli import Mistake


def write_subset(data_dir: Path, target: Path, classes: int, images: int | None = None) -> int:
    """The first `classes` of wnids.txt, of each the first `images` to train on and all to validate
    on; all of it or nothing. How many images there are to train on.
    """
    found = layout.read_layout(layout.find_root(data_dir).resolve())
    if not 2 <= classes <= len(found.wnids):
        raise Mistake(f"classes={classes}: there are 2 to {len(found.wnids)}")
    if images is not None and images < 1:
        raise Mistake(f"images={images}: give at least 1 a class")
    target = target.resolve()
    if os.path.lexists(target):
        raise Mistake(f"{target} is there already; give another folder")
    layout.make_data_dir(target.parent)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        linked = _link(found, new / layout.FOLDER, classes, images)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return linked


def _link(found: layout.Layout, into: Path, classes: int, images: int | None) -> int:
    into.mkdir(parents=True)
    wnids, linked = found.wnids[:classes], 0
    (into / "wnids.txt").write_text("\n".join(wnids) + "\n")
    shared = ["words.txt", "val", *(f"train/{wnid}/{wnid}_boxes.txt" for wnid in wnids)]
    for folder in found.folders:
        if not folder.is_val and folder.label < classes:
            (into / folder.path).mkdir(parents=True)
            for name in folder.names[:images]:
                (into / folder.path / name).symlink_to(found.root / folder.path / name)
                linked += 1
    for name in shared:
        if (found.root / name).exists():
            (into / name).symlink_to(found.root / name)
    return linked
