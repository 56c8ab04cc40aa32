"""Three data sets behind one interface, and the commands to get and examine them.

    python data.py fetch     downloads and unpacks Tiny ImageNet (248 MB) into data/
    python data.py check     20 s for 110,000 images: what is there, and what is wrong with it
    python data.py subset    a folder with fewer classes and images of it, for a quick try
    python data.py shapes    3 s: writes the built-in data set, no network needed
    python data.py show      a picture of augmented training batches

In code: `load("tiny-imagenet", Path("data"))` decodes every image once into a memory-mapped cache
(`cache.py`) and splits them into training and validation.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import cifar10
import cli
import dice
import layout
from cache import Cache, create_images, open_cache
from cli import Mistake
from decode import decode_files
from split import fingerprint, split_pooled

DATASETS = ("tiny-imagenet", "cifar10", "shapes")
SPLITS = ("pooled", "official")

# Mean and standard deviation of the pixels, RGB, in 0..1.
NORMALIZATIONS = {
    "tiny-imagenet": ((0.482, 0.450, 0.401), (0.277, 0.269, 0.282)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "shapes": ((0.488, 0.487, 0.489), (0.286, 0.287, 0.289)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Of Tiny ImageNet as most public recipes copy it; the deviation is not that of the pixels.
    "copied": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}


@dataclass(frozen=True)
class Data:
    """A data set, ready: every image decoded, and which of them train and which validate."""

    name: str
    root: Path  # what `files` are relative to
    cache: Cache
    train: np.ndarray  # int64, indices into the cache, ascending
    val: np.ndarray
    fingerprint: str  # of the split: equal where the same images train and the same validate
    stored_size: int  # pixels of an image's side before `center_crop`

    @property
    def images(self) -> np.ndarray:
        return self.cache.images

    @property
    def labels(self) -> np.ndarray:
        return self.cache.labels

    @cached_property
    def order(self) -> str:
        """Equal where the same images have the same numbers and labels. Another layout of the same
        files (val/ sorted into classes, wnids.txt in another order) may give another one.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.cache.content, self.labels):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, for the holes of cutout."""
        red, green, blue = (round(255 * mean) for mean in NORMALIZATIONS[self.name][0])
        return red, green, blue

    def file(self, index: int) -> str:
        return os.fsdecode(self.cache.files[index])

    def class_name(self, label: int) -> str:
        return str(self.cache.names[label])


def load(
    dataset: str,
    data_dir: Path,
    split: str = "pooled",
    val_fraction: float = 0.3,
    split_seed: int = 0,
    center_crop: int = 0,
    meanwhile: Callable[[], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Data:
    """Open the data set `dataset` in `data_dir` (decoding it on the first call) and split it; of
    each image keep the middle of `center_crop` pixels, 0 for all. `meanwhile`: see `read_layout`;
    `check` may end the decoding.
    """
    root, cache = get(dataset, data_dir, meanwhile, check)
    stored_size = cache.images.shape[1]
    if center_crop:
        cache = crop_cache(cache, center_crop)
    if dataset == "cifar10" or split == "official":
        is_val = cache.is_val
    else:
        is_val = split_pooled(cache.labels, cache.content, val_fraction, split_seed)
    if not is_val.any():
        why = (
            f"{root} has no val images"
            if split == "official"
            else f"val_fraction={val_fraction} of {len(is_val)} images leaves none to validate on"
        )
        raise Mistake(
            f"{why}; use " + ("--split=pooled" if split == "official" else "a larger one")
        )
    return Data(
        dataset,
        root,
        cache,
        np.flatnonzero(~is_val),
        np.flatnonzero(is_val),
        fingerprint(cache.content, is_val),
        stored_size,
    )


def get(
    dataset: str,
    data_dir: Path,
    meanwhile: Callable[[], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Path, Cache]:
    """The data set's folder and its decoded images."""
    if dataset == "cifar10":
        return cifar10.folder(data_dir), cifar10.open_cifar10(data_dir, check)
    root = _layout_root(dataset, data_dir)
    found = layout.read_layout(root, meanwhile)

    def decode(images_npy: Path) -> dict:
        return _decode_layout(found, images_npy, check)

    return root, open_cache(data_dir, dataset, found.key(), decode, check)


def crop_cache(cache: Cache, size: int) -> Cache:
    """The middle of every image, and what is left of its box there."""
    stored = cache.images.shape[1]
    if size > stored:
        raise Mistake(f"center_crop={size} is more than the images have: {stored} px")
    boxes = np.clip(cache.boxes - (stored - size) // 2, 0, size - 1)
    boxes[layout.degenerate(cache.boxes)] = 0  # still without an area
    boxes[(cache.boxes == layout.NO_BOX).all(1)] = layout.NO_BOX
    return dataclasses.replace(cache, images=middle(cache.images, size), boxes=boxes)


def middle(images: np.ndarray, size: int) -> np.ndarray:
    """A view of the middle `size` x `size` pixels of each (n, H, H, 3)."""
    margin = (images.shape[1] - size) // 2
    return images[:, margin : margin + size, margin : margin + size]


def _layout_root(dataset: str, data_dir: Path) -> Path:
    if dataset == "tiny-imagenet":
        return layout.find_root(data_dir)
    if dataset != "shapes":
        raise Mistake(
            f"dataset={dataset!r} is unknown; there are {', '.join(DATASETS)}"
            + cli.did_you_mean(dataset, DATASETS)
        )
    from shapes import write_shapes

    root = data_dir / "shapes"
    if not (root / "wnids.txt").is_file():
        write_shapes(root)
    return root


def _decode_layout(
    found: layout.Layout, images_npy: Path, check: Callable[[], None] = lambda: None
) -> dict:
    images = layout.read_images(found)
    count, size = len(images.files), layout.IMAGE_SIZE
    create_images(images_npy, count, size, size)
    content = np.zeros(count, np.uint64)
    for chunk in decode_files(
        found.root, images.files, size, f"decoding {found.root.name}", images_npy
    ):
        for problem in chunk.problems[:1]:
            raise Mistake(
                f"{problem.text}; put a good copy there or delete it "
                "(`python data.py check` lists all such images)"
            )
        content[chunk.start : chunk.start + len(chunk.content)] = chunk.content
        check()
    return {
        "labels": images.labels,
        "is_val": images.is_val,
        "boxes": images.boxes,
        "content": content,
        "files": np.array([os.fsencode(file) for file in images.files]),
        "classes": np.array(found.wnids),
        "names": np.array(layout.read_names(found.root, found.wnids)),
    }


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python data.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> cli.Parser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument(
            "--data_dir",
            type=Path,
            default=Path("data"),
            metavar="DIR",
            help="the folder that contains the data set's folder (default: data)",
        )
        return sub

    which = f"the data set (default: {DATASETS[0]})"
    fetch = command(
        "fetch", _fetch, "download a data set and unpack it; a broken download is resumed"
    )
    fetch.add_argument("--dataset", choices=DATASETS[:2], default=DATASETS[0], help=which)
    fetch.add_argument("--url", help="another address of tiny-imagenet-200.zip")
    fetch.add_argument(
        "--zip", type=Path, metavar="FILE", help="unpack this file, download nothing"
    )
    fetch.add_argument(
        "--md5", help="expected md5 of the archive, or none (default: the official one)"
    )

    check = command(
        "check",
        _check,
        "say what is there and what is wrong; exit status 2 where training could not work",
    )
    check.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help=which)

    subset = command(
        "subset", _subset, "Tiny ImageNet with fewer classes and images, by links, for a quick try"
    )
    subset.add_argument(
        "folder", type=Path, metavar="FOLDER", help="is made; afterwards the --data_dir to train on"
    )
    subset.add_argument(
        "--classes", type=int, default=50, metavar="N", help="the first ones (default: 50)"
    )
    subset.add_argument(
        "--images", type=int, metavar="N", help="training images of each class (default: all)"
    )

    shapes = command(
        "shapes", _shapes, "write the built-in data set, in the layout of Tiny ImageNet"
    )
    for name, default, what in (
        ("classes", 10, "classes"),
        ("train_per_class", 80, "training images of each class"),
        ("val_per_class", 20, "validation images of each class"),
        ("seed", 0, "another one draws other images"),
    ):
        text = f"{what} (default: {default})"
        shapes.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)

    show = command("show", _show, "draw training images under the default augmentation")
    show.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help=which)
    show.add_argument(
        "--aug_strength", type=float, default=1.0, metavar="S", help="0 to 2 (default: 1)"
    )
    show.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("augmented.png"),
        metavar="FILE",
        help="the picture, .png or .jpg (default: augmented.png)",
    )
    return parser


def _fetch(options) -> int:
    if options.dataset == "cifar10":
        if options.url or options.zip or options.md5:
            raise Mistake("--url, --zip and --md5 are for --dataset=tiny-imagenet only")
        cifar10.fetch(options.data_dir)
        return 0
    import fetch

    if (options.data_dir / "wnids.txt").is_file():
        print(f"{options.data_dir} is a data set already (`python data.py check` examines it)")
        return 0
    chosen = {"url": options.url, "zip_file": options.zip, "md5": options.md5}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if options.md5 == "none":
        chosen["md5"] = None
    fetch.fetch_tiny_imagenet(options.data_dir, **chosen)
    return 0


def _check(options) -> int:
    import check

    if options.dataset == "cifar10":
        return check.check_cifar10(load("cifar10", options.data_dir))
    return check.check_layout(_layout_root(options.dataset, options.data_dir))


def _subset(options) -> int:
    from subset import write_subset

    count = write_subset(options.data_dir, options.folder, options.classes, options.images)
    print(f"{options.folder}: {count:,} training images of {options.classes} classes, by links")
    return 0


def _shapes(options) -> int:
    from shapes import write_shapes

    root = options.data_dir / "shapes"
    write_shapes(
        root, options.classes, options.train_per_class, options.val_per_class, options.seed
    )
    per_class = options.train_per_class + options.val_per_class
    print(f"{root}: {options.classes * per_class} images of {options.classes} classes")
    return 0


def _show(options) -> int:
    from augment import Augmenter
    from config import Config
    from viz import augmented_batch

    recipe = Config(dataset=options.dataset, aug_strength=options.aug_strength)
    if not options.output.parent.is_dir():
        raise Mistake(f"--output={options.output}: there is no folder {options.output.parent}")
    if options.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Mistake(f"--output={options.output} must end in .png or .jpg")
    data = load(options.dataset, options.data_dir)
    augmentation = recipe.augmentation(data.images.shape[1])
    indices = data.train[dice.order(len(data.train), 0)[:8]]
    augmented_batch(data, Augmenter(augmentation, data.fill, seed=0), indices).save(options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    cli.run(main)
