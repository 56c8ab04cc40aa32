"""The folder layout of Tiny ImageNet: which images there are, their classes, names and boxes.

    tiny-imagenet-200/wnids.txt  words.txt
    tiny-imagenet-200/train/<wnid>/images/*.JPEG    train/<wnid>/<wnid>_boxes.txt
    tiny-imagenet-200/val/images/*.JPEG             val/val_annotations.txt

The copies that people sorted are read as well: `val/<wnid>/*.JPEG`, with or without `images/` in
between.
"""

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli import Mistake
from pool import cores, worker_pool

FOLDER = "tiny-imagenet-200"
IMAGE_SIZE = 64  # pixels, width and height
IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
MANY_CLASSES = 80
NO_BOX = -1  # in all four places of an image without a box


@dataclass(frozen=True)
class Folder:
    """One folder of images, with what a look at the disk tells about each of them."""

    path: str  # relative to the root
    label: int  # class of all its images, or -1: the annotations tell
    is_val: bool
    names: tuple[str, ...]  # sorted
    stamps: bytes  # size and time of change of every image


@dataclass(frozen=True)
class Layout:
    root: Path
    wnids: tuple[str, ...]  # one a class, in the order of wnids.txt, which need not be sorted
    folders: tuple[Folder, ...]

    def key(self) -> str:
        """Changes with any image, annotation or list of classes that was added, removed or written
        again.
        """
        digest = hashlib.blake2b(digest_size=8)
        digest.update("\n".join(self.wnids).encode())
        for folder in self.folders:
            digest.update(f"\0{folder.path}\0".encode())
            digest.update(os.fsencode("\n".join(folder.names)) + folder.stamps)
        for name in ("words.txt", "val/val_annotations.txt"):
            digest.update(_stamp(self.root / name))
        for folder in self.folders:
            digest.update(_stamp(self.root / _box_file(self.wnids, folder)))
        return digest.hexdigest()


def find_root(data_dir: Path) -> Path:
    """The folder with wnids.txt: in `data_dir`, or `data_dir` itself."""
    if data_dir.exists() and not data_dir.is_dir():
        raise Mistake(f"--data_dir={data_dir} is a file; give the folder that contains {FOLDER}/")
    for root in (data_dir / FOLDER, data_dir):
        if (root / "wnids.txt").is_file():
            return root
    if (data_dir / FOLDER).is_dir():
        raise Mistake(
            f"{data_dir / FOLDER / 'wnids.txt'} is missing; remove the folder and get it "
            f"again with `python data.py fetch --data_dir={shlex.quote(str(data_dir))}`"
        )
    raise Mistake(
        f"no {FOLDER}/ in --data_dir={data_dir}; get it with "
        f"`python data.py fetch --data_dir={shlex.quote(str(data_dir))}`"
    )


def make_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Mistake(f"{data_dir}: not a folder; choose another --data_dir") from error


def read_layout(root: Path, meanwhile: Callable[[], None] | None = None) -> Layout:
    """List every image of the classes in wnids.txt; a class with none to train on is a mistake.

    `meanwhile` is called while other processes look at the files, where they are many.
    """
    wnids = read_wnids(root)
    train = _scan_all(root, "train", wnids, meanwhile)
    for folder, wnid in zip(train, wnids, strict=True):
        if not folder.names:
            state = "has no images" if (root / "train" / wnid).is_dir() else "is missing"
            raise Mistake(
                f"{root / 'train' / wnid} {state}; restore it, or take {wnid} out of "
                f"{root / 'wnids.txt'}"
            )
    return Layout(root, wnids, (*train, *_scan_val(root, wnids)))


def read_wnids(root: Path) -> tuple[str, ...]:
    try:
        wnids = tuple((root / "wnids.txt").read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise Mistake(f"{root / 'wnids.txt'}: this is no text in UTF-8") from error
    if len(wnids) < 2 or len(set(wnids)) < len(wnids):
        raise Mistake(f"{root / 'wnids.txt'} must list at least two classes, each once")
    for wnid in wnids:
        if "/" in wnid or wnid.startswith("."):
            raise Mistake(f"{root / 'wnids.txt'}: {wnid!r} is no class id")
    return wnids


def read_names(root: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first human name of each class in words.txt; the id itself where it has none."""
    names = {}
    path = root / "words.txt"
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            wnid, _, words = line.partition("\t")
            names[wnid] = words.split(",")[0].strip()
    return tuple(names.get(wnid) or wnid for wnid in wnids)


@dataclass(frozen=True)
class Images:
    """Every image of the layout, flat, in a fixed order."""

    files: list[str]  # relative to the root
    labels: np.ndarray  # int64 (N,)
    is_val: np.ndarray  # bool (N,)
    boxes: np.ndarray  # int16 (N, 4): x0 y0 x1 y1, inclusive, NO_BOX where there is none


def read_images(layout: Layout) -> Images:
    """The images with labels and boxes; val images of classes that wnids.txt does not list are left
    out.
    """
    val_rows = read_val_annotations(layout.root)
    label_of = {wnid: label for label, wnid in enumerate(layout.wnids)}
    files, labels, is_val, boxes = [], [], [], []
    for folder in layout.folders:
        box_of = {name: box for name, (_, box) in val_rows.items()} if folder.is_val else {}
        if folder.label >= 0:
            box_of |= read_boxes(layout.root / _box_file(layout.wnids, folder))
        for name in folder.names:
            label = folder.label
            if label < 0:
                if name not in val_rows:
                    raise Mistake(
                        f"{layout.root / 'val/val_annotations.txt'} has no line for {name}; "
                        "add it, or remove the image"
                    )
                label = label_of.get(val_rows[name][0], -1)
            if label < 0:
                continue
            files.append(f"{folder.path}/{name}")
            labels.append(label)
            is_val.append(folder.is_val)
            boxes.append(box_of.get(name, (NO_BOX,) * 4))
    return Images(
        files,
        np.array(labels, np.int64),
        np.array(is_val, bool),
        np.array(boxes, np.int16).reshape(-1, 4),
    )


def read_boxes(path: Path) -> dict[str, tuple[int, ...]]:
    """`file x0 y0 x1 y1` lines of one class; nothing where there is no such file."""
    return {fields[0]: _box(fields[1:], place) for fields, place in _rows(path, 5)}


def read_val_annotations(root: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """`file wnid x0 y0 x1 y1` lines of the official layout; nothing where there is no such file."""
    path = root / "val" / "val_annotations.txt"
    return {fields[0]: (fields[1], _box(fields[2:], place)) for fields, place in _rows(path, 6)}


def degenerate(boxes: np.ndarray) -> np.ndarray:
    """Boxes without an area, or that leave the image: no object to look at."""
    x0, y0, x1, y1 = boxes.astype(np.int64).T
    outside = (boxes < 0).any(1) | (boxes >= IMAGE_SIZE).any(1)
    return (outside | (x1 <= x0) | (y1 <= y0)) & (boxes != NO_BOX).any(1)


def _rows(path: Path, columns: int) -> Iterator[tuple[list[str], str]]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(fields) != columns:
            raise Mistake(f"{path}, line {number}: {columns} columns are needed, not {line[:60]!r}")
        yield fields, f"{path}, line {number}"


def _box(fields: list[str], place: str) -> tuple[int, ...]:
    try:
        box = tuple(int(field) for field in fields)
    except ValueError:
        box = ()
    if len(box) != 4 or not all(-(2**15) <= corner < 2**15 for corner in box):
        raise Mistake(f"{place}: a box is four whole numbers, not {' '.join(fields)[:60]!r}")
    return box


def _scan_val(root: Path, wnids: tuple[str, ...]) -> list[Folder]:
    official = _scan(root, "val/images", -1, True)
    return [official] if official.names else [f for f in _scan_all(root, "val", wnids) if f.names]


def _scan_all(
    root: Path, part: str, wnids: tuple[str, ...], meanwhile: Callable[[], None] | None = None
) -> list[Folder]:
    """A look at every file: 0.8 s for the whole set on one core, so large sets take all cores."""
    paths = [_images_of(root, f"{part}/{wnid}") for wnid in wnids]
    args = [root] * len(wnids), paths, range(len(wnids)), [part == "val"] * len(wnids)
    if len(wnids) < MANY_CLASSES or not (root / part).is_dir():
        return list(map(_scan, *args))
    others = 1 if meanwhile else 0  # a core for what is done meanwhile
    with worker_pool(max(1, min(cores() - others, 4))) as workers:
        scanned = workers.map(_scan, *args, chunksize=MANY_CLASSES // 8)  # begins at once
        if meanwhile:
            meanwhile()
        return list(scanned)


def _images_of(root: Path, path: str) -> str:
    return f"{path}/images" if (root / path / "images").is_dir() else path


def _scan(root: Path, path: str, label: int, is_val: bool) -> Folder:
    """List one folder; `dir_fd` keeps the 110,000 look-ups of the whole set under a second."""
    try:
        fd = os.open(root / path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return Folder(path, label, is_val, (), b"")
    try:
        names = sorted(
            name  # not macOS's `._` files, which lie beside the images in archives made there
            for name in os.listdir(fd)
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
        )
        stamps = [_size_and_time(name, fd) for name in names]
    finally:
        os.close(fd)
    return Folder(path, label, is_val, tuple(names), np.array(stamps, np.int64).tobytes())


def _size_and_time(name: str, folder: int) -> tuple[int, int]:
    try:
        stat = os.stat(name, dir_fd=folder)
    except FileNotFoundError:  # a link to nowhere: an image that cannot be read
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _box_file(wnids: tuple[str, ...], folder: Folder) -> str:
    if folder.label < 0:
        return "val/val_annotations.txt"
    wnid = wnids[folder.label]
    return f"{'val' if folder.is_val else 'train'}/{wnid}/{wnid}_boxes.txt"


def _stamp(path: Path) -> bytes:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return b"none"
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()
