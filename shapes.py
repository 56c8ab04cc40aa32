"""The built-in data set: coloured shapes on textured ground, in the exact layout of Tiny ImageNet.

The class is the outline. The colour only hints at it (each class has a hue that it prefers), so
that a network does better than chance after one epoch and still has something to learn after ten.
Every picture is a pure function of (seed, class, part, index): asking for more images or more
classes leaves the earlier ones as they were.
"""

import contextlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import dice
import locks
from cli import Mistake
from layout import make_data_dir

VERSION = 1  # raise it with every change of the pictures: `data.py shapes` writes older sets again
STAMP = "shapes.json"
PARTS = ("train", "val")
SIDE = 64  # pixels, width and height
FINE = 8  # outlines are drawn this many times larger, then averaged: smooth edges
COVERED = 0.25  # a pixel belongs to the object from this share of its area on
OBJECT_SIDE = (22.0, 38.0)  # pixels, the longer side of the box
CONTRAST = 0.2  # least difference in lightness, 0..1, between the object and its ground
GREY_SHARE = 0.02  # as in the real set
HUE_SPREAD = 0.025  # standard deviation around the class's hue; the whole circle is 1
ANY_HUE_SHARE = 0.06  # of the images: their colour tells nothing about the class
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Shape:
    wnid: str
    names: str  # as words.txt has them: the first one is shown
    turn: float  # degrees to either side; less than what would make it look like another class
    hue: float  # preferred colour, 0..1 around the circle
    outline: tuple[np.ndarray, ...]  # polygons (N, 2), y down; one inside another is a hole


@dataclass(frozen=True)
class Picture:
    image: np.ndarray  # uint8 RGB (64, 64, 3), or grey (64, 64)
    mask: np.ndarray  # float32 (64, 64): share of each pixel that the object covers
    box: tuple[int, int, int, int]  # x0 y0 x1 y1, inclusive


def _ray(radii: np.ndarray | float, degrees: np.ndarray) -> np.ndarray:
    """Points at these distances and directions; 0 degrees is up, then clockwise."""
    angle = np.radians(degrees)
    return np.stack([radii * np.sin(angle), -radii * np.cos(angle)], 1)


def _regular(corners: int, radius: float = 1.0) -> np.ndarray:
    return _ray(radius, np.arange(corners) * 360 / corners)


def _corners(*xy: float) -> np.ndarray:
    return np.array(xy, float).reshape(-1, 2)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def _crescent() -> np.ndarray:
    """A disc less a smaller one to its right; their edges meet at (0.63, +-0.78)."""
    inner = _ray(0.8, np.linspace(12.6, -192.6, 50)) + np.array([0.45, 0])
    return np.concatenate([_ray(1.0, np.linspace(141.3, 398.7, 60)), inner])


DISC = _regular(72)
HOLE = _regular(72, 0.55)
SQUARE = _corners(-1, -1, 1, -1, 1, 1, -1, 1)
STAR = _ray(np.tile([1, 0.42], 5), np.arange(10) * 36)
PLUS = _corners(-1, -3, 1, -3, 1, -1, 3, -1, 3, 1, 1, 1, 1, 3, -1, 3, -1, 1, -3, 1, -3, -1, -1, -1)
ARROW = _corners(-3, -1, 0, -1, 0, -2.6, 3, 0, 0, 2.6, 0, 1, -3, 1)
HOURGLASS = _corners(-2, -3, 2, -3, -2, 3, 2, 3)
LETTER_L = _corners(-1, -1.5, -0.2, -1.5, -0.2, 0.7, 1, 0.7, 1, 1.5, -1, 1.5)
DIAMOND = _corners(0, -1.5, 1, 0, 0, 1.5, -1, 0)
DROP = np.concatenate([_ray(1, np.linspace(60, 300, 50)), [[0, -2.0]]])

SHAPES = (
    Shape("n90000007", "disc, filled circle", 0, 0.05, (DISC,)),
    Shape("n90000002", "square, block", 15, 0.65, (SQUARE,)),
    Shape("n90000011", "triangle, trigon", 18, 0.35, (_regular(3),)),
    Shape("n90000005", "five-pointed star, pentagram", 25, 0.15, (STAR,)),
    Shape("n90000003", "plus sign, Greek cross", 18, 0.75, (PLUS,)),
    Shape("n90000013", "ring, annulus", 0, 0.55, (DISC, HOLE)),
    Shape("n90000001", "heart, love heart", 20, 0.95, (_heart(),)),
    Shape("n90000010", "crescent, half-moon", 35, 0.25, (_crescent(),)),
    Shape("n90000004", "arrow, pointer", 25, 0.45, (ARROW,)),
    Shape("n90000012", "hourglass, sandglass", 20, 0.85, (HOURGLASS,)),
    Shape("n90000006", "carpenter's square, letter L", 15, 0.70, (LETTER_L,)),
    Shape("n90000014", "diamond, rhombus", 12, 0.80, (DIAMOND,)),
    Shape("n90000009", "hexagon, six-sided polygon", 15, 0.30, (_regular(6),)),
    Shape("n90000008", "drop, teardrop", 25, 0.60, (DROP,)),
)
UNUSED_WORDS = ("n90000020\tspiral, helix", "n90000021\tknot, trefoil", "n90000022\tsemicircle")


def draw(class_index: int, part: str, index: int, seed: int = 0) -> Picture:
    """Image `index` of a class in `train` or `val`; depends on its arguments alone."""
    key = int(dice.bits(seed, class_index, PARTS.index(part), index))
    random = np.random.Generator(np.random.Philox(key=key))
    shape = SHAPES[class_index]
    mask = _mask(shape, random)
    hue = random.normal(shape.hue, HUE_SPREAD)
    if random.random() < ANY_HUE_SHARE:
        hue = random.random()
    fill = _colour(hue, random.uniform(0.55, 0.9), random.uniform(0.7, 1.0))
    image = _ground(float(fill @ LUMA), random)
    shadow = cv2.GaussianBlur(np.roll(mask, (1, 1), (0, 1)), (0, 0), 1.2)
    image *= 1 - 0.3 * shadow[..., None]
    paint = fill * (1 + 0.16 * _clouds(random, 2, 3, 16))[..., None]
    image += mask[..., None] * (paint - image) + random.normal(0, 0.02, (SIDE, SIDE, 1))
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    if random.random() < GREY_SHARE:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    ys, xs = np.nonzero(mask >= COVERED)
    return Picture(pixels, mask, (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())))


def _mask(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """The outline turned, mirrored, stretched and put somewhere, most often off the centre."""
    turn = np.radians(random.uniform(-shape.turn, shape.turn))
    stretch = np.diag([random.choice([-1, 1]), random.uniform(0.87, 1.15)])
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    polygons = [points @ stretch @ rotate for points in shape.outline]
    low = np.min([points.min(0) for points in polygons], 0)
    extent = np.max([points.max(0) for points in polygons], 0) - low
    scale = random.uniform(*OBJECT_SIDE) / extent.max()
    # The cosine makes places near the border likelier than the middle; one pixel stays free.
    place = 1 + (SIDE - 2 - scale * extent) * (0.5 - 0.5 * np.cos(np.pi * random.random(2)))
    canvas = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)
    fine = [np.rint(((p - low) * scale + place) * FINE).astype(np.int32) for p in polygons]
    cv2.fillPoly(canvas, fine, 255)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _ground(object_luma: float, random: np.random.Generator) -> np.ndarray:
    """A pattern between two muted colours, both darker or both lighter than the object."""
    # Either one, wherever there is room: else the ground would tell what the object's hue tells.
    ranges = (0.1, object_luma - CONTRAST), (object_luma + CONTRAST, 0.92)
    ranges = [(low, high) for low, high in ranges if high - low > 0.05]
    lumas = random.uniform(*ranges[random.integers(len(ranges))], 2)
    first, second = (_tint(random, luma) for luma in lumas)
    share = (0.5 + 0.5 * _pattern(random)).clip(0, 1).astype(np.float32)
    for _ in range(random.integers(4)):  # spots: something to see that is no object
        x, y, radius = (int(8 * random.uniform(*r)) for r in ((0, SIDE), (0, SIDE), (2, 4)))
        cv2.circle(share, (x, y), radius, random.choice([-0.6, 1.6]), -1, shift=3)
    return first + share[..., None] * (second - first)


def _pattern(random: np.random.Generator) -> np.ndarray:
    """Stripes, checks, a slope or clouds, with finer clouds on top; about -1..1."""
    turn, wave = random.uniform(0, 2 * np.pi), 2 * np.pi / random.uniform(8, 22)  # 8..22 pixels
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    across, along = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    coarse = _clouds(random, 4, 8)
    kind = random.integers(4)
    if kind == 0:
        coarse = 0.9 * np.sin(wave * across)
    elif kind == 1:
        coarse = 0.8 * np.tanh(4 * np.sin(wave * across) * np.sin(wave * along))
    elif kind == 2:
        coarse = across / (SIDE / 2)
    return coarse + 0.4 * _clouds(random, 4, 16)


def _clouds(random: np.random.Generator, *cells: int) -> np.ndarray:
    """Smooth noise, the sum of one grid of random values for each number of cells; about -1..1."""
    grids = (random.normal(0, 0.7, (n, n)).astype(np.float32) for n in cells)
    layers = [cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for grid in grids]
    return np.sum(layers, 0) / len(layers) ** 0.5


def _tint(random: np.random.Generator, luma: float) -> np.ndarray:
    colour = _colour(random.random(), random.uniform(0.05, 0.4), 1.0)
    return (colour * (luma / (colour @ LUMA))).clip(0, 1)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    pixel = np.array([[[hue % 1 * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


def write_shapes(
    root: Path, classes: int = 10, train_per_class: int = 80, val_per_class: int = 20, seed: int = 0
) -> None:
    """Write the set to `root`, all of it or nothing; return at once where it is there."""
    if not 2 <= classes <= len(SHAPES):
        raise Mistake(f"classes={classes}: the shapes data set has 2 to {len(SHAPES)} classes")
    for name, count in (("train_per_class", train_per_class), ("val_per_class", val_per_class)):
        if count < 1:
            raise Mistake(f"{name}={count}: give at least 1 image a class")
    if not 0 <= seed < 2**31:
        raise Mistake(f"seed={seed}: must be at least 0 and below 2^31")
    root = Path(root).resolve()
    wanted = {
        "version": VERSION,
        "classes": classes,
        "train_per_class": train_per_class,
        "val_per_class": val_per_class,
        "seed": seed,
    }
    if _stamp_of(root) == wanted:
        return
    make_data_dir(root.parent)
    with _locked(root.parent / f".{root.name}.lock"):
        _remove_leftovers(root)
        if _stamp_of(root) != wanted:  # else another process was faster
            _replace(root, wanted)


def _stamp_of(root: Path) -> dict | None:
    """What the set in `root` was made from; None without one. Other files are left alone."""
    if root.is_dir() and (root / STAMP).is_file():
        with contextlib.suppress(ValueError):
            return json.loads((root / STAMP).read_text())
    elif root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise Mistake(f"{root} is there already but is no set of shapes (no {STAMP}); move it away")
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however that ends. The file stays."""
    with open(path, "w") as file:
        locks.wait_for(file)
        yield


def _remove_leftovers(root: Path) -> None:
    """What killed processes left behind: only the holder of the lock makes such folders."""
    for path in [] if locks.missing else root.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(root.name)}\.\d+\.(new|old)", path.name):
            shutil.rmtree(path)


def _replace(root: Path, wanted: dict) -> None:
    new, old = (root.parent / f".{root.name}.{os.getpid()}.{age}" for age in ("new", "old"))
    try:
        _write(new, wanted)
        if root.exists():
            root.rename(old)
        new.rename(root)
    finally:  # also with a full disk, or Ctrl-C
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, wanted: dict) -> None:
    tables = defaultdict(list)
    jobs = list(_jobs(wanted["classes"], wanted["train_per_class"], wanted["val_per_class"]))
    bar = tqdm(jobs, "shapes", unit=" images", leave=False, disable=None)  # on a terminal only
    for path, table, label, part, index in bar:
        picture = draw(label, part, index, wanted["seed"])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        # Not cv2.imwrite, which answers False where the disk is full: this raises.
        (root / path).write_bytes(_jpeg(picture.image))
        wnid = [SHAPES[label].wnid] if part == "val" else []
        tables[table].append("\t".join([Path(path).name, *wnid, *map(str, picture.box)]))
    tables["wnids.txt"] = [shape.wnid for shape in SHAPES[: wanted["classes"]]]
    tables["words.txt"] = sorted([f"{s.wnid}\t{s.names}" for s in SHAPES] + list(UNUSED_WORDS))
    tables[STAMP] = [json.dumps(wanted)]
    for table, lines in tables.items():
        (root / table).write_text("\n".join(lines) + "\n")


def _jobs(classes: int, train: int, val: int) -> Iterator[tuple[str, str, int, str, int]]:
    """Image file, the table for its box, class, part and index; val is not sorted by class."""
    for label, shape in enumerate(SHAPES[:classes]):
        folder = f"train/{shape.wnid}"
        for index in range(train):
            image = f"{folder}/images/{shape.wnid}_{index}.JPEG"
            yield image, f"{folder}/{shape.wnid}_boxes.txt", label, "train", index
    for number in range(classes * val):
        index, label = divmod(number, classes)
        yield f"val/images/val_{number}.JPEG", "val/val_annotations.txt", label, "val", index


def _jpeg(image: np.ndarray) -> bytes:
    """Quality 75 and, as OpenCV does by itself, 4:2:0: like the real set."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
