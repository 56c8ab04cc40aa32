"""`python data.py check`: what a data set holds and what is wrong with it."""

from collections import Counter
from pathlib import Path

import numpy as np

import layout
from cli import Mistake
from data import Data
from decode import Problem, decode_files

SHOWN = 10  # problems listed by name


def check_layout(root: Path) -> int:
    """Look at every file; report on stdout; a Mistake where training could not work."""
    found = layout.read_layout(root)
    images = layout.read_images(found)
    print(f"{root}: {len(found.wnids)} classes, {len(images.files):,} images")
    grey = np.zeros(len(images.files), bool)
    content = np.zeros(len(images.files), np.uint64)
    problems = []
    for chunk in decode_files(root, images.files, layout.IMAGE_SIZE, "looking at the images"):
        part = slice(chunk.start, chunk.start + len(chunk.content))
        grey[part], content[part] = chunk.grey, chunk.content
        problems += chunk.problems
    _report_counts(images, grey)
    _report_identical(images, content, problems)
    _report_boxes(images)
    _report_problems(problems)
    if problems:
        raise Mistake(
            f"{root}: {len(problems):,} images cannot be used; put good copies there or delete them"
        )
    print("  nothing here stands in the way of training")
    return 0


def check_cifar10(data: Data) -> int:
    print(
        f"{data.root}: {len(data.cache.classes)} classes, {len(data.train):,} training and "
        f"{len(data.val):,} test images"
    )
    return 0


def _report_counts(images: layout.Images, grey: np.ndarray) -> None:
    for name, part in (("train", ~images.is_val), ("val", images.is_val)):
        if not part.any():
            print(f"  {name:5}        0 images: only --split=pooled can be trained")
            continue
        per_class = np.bincount(images.labels[part], minlength=images.labels.max() + 1)
        each = (
            f"{per_class.min()}"
            if per_class.min() == per_class.max()
            else (f"{per_class.min()} to {per_class.max()}")
        )
        official = 50 if name == "val" else 500
        unusual = "" if (per_class == official).all() else f" (the official set has {official})"
        print(f"  {name:5} {part.sum():8,} images, {each} a class{unusual}")
    print(
        f"  greyscale {grey.sum():,} ({(grey & ~images.is_val).sum():,} train, "
        f"{(grey & images.is_val).sum():,} val); they are read as RGB"
    )


def _report_identical(images: layout.Images, content: np.ndarray, problems: list[Problem]) -> None:
    """Identical files, pair by pair; a pair with two labels contradicts itself."""
    readable = np.ones(len(content), bool)
    readable[[problem.index for problem in problems]] = False
    order = np.flatnonzero(readable)
    order = order[np.argsort(content[order], kind="stable")]
    starts = np.flatnonzero(np.diff(content[order], prepend=content[order[:1]] + np.uint64(1)))
    kinds = Counter()
    for group in np.split(order, starts[1:]):
        for i, first in enumerate(group):
            for second in group[i + 1 :]:
                across = images.is_val[first] != images.is_val[second]
                kinds[images.labels[first] != images.labels[second], bool(across)] += 1
    contradictory = kinds[True, True] + kinds[True, False]
    print(
        f"  identical files: {contradictory:,} pairs with two different labels "
        f"({kinds[True, True]:,} of them across train and val), "
        f"{kinds[False, True] + kinds[False, False]:,} with the same label"
    )


def _report_boxes(images: layout.Images) -> None:
    boxed = (images.boxes != layout.NO_BOX).any(1)
    broken = layout.degenerate(images.boxes)
    print(
        f"  boxes {boxed.sum():,}, {broken.sum():,} of them degenerate "
        f"({(broken & ~images.is_val).sum():,} train, {(broken & images.is_val).sum():,} val)"
    )


def _report_problems(problems: list[Problem]) -> None:
    kinds = Counter(problem.kind for problem in problems)
    for kind in ("unreadable", "wrong size", "colour mode"):
        print(f"  {kind}: {kinds[kind]:,}")
    for problem in problems[:SHOWN]:
        print(f"    {problem.text}")
    if len(problems) > SHOWN:
        print(f"    … and {len(problems) - SHOWN:,} more")
