"""What one run fixed and what it broke, image by image, against another on the same split.

`compare` needs only the two predictions.npz; `gallery` draws the images with both runs' maps, from
the data and both best.pt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cli import Mistake
from collection import PastRun

LIKELY = 0.05  # what chance alone gives less often than this is more than chance
MOVED = 10  # classes, in each direction
SHOWN = 16  # images fixed, and so many broken
TILE = 112


@dataclass(frozen=True)
class Difference:
    """B against A. `fixed` and `broken` are positions in both predictions, the surest first."""

    images: int
    both_right: int
    both_wrong: int
    fixed: np.ndarray
    broken: np.ndarray
    p: float
    gained: list[tuple[int, int, int]]  # (class, its images, more of them right), most first
    lost: list[tuple[int, int, int]]


def compare(a: PastRun, b: PastRun) -> Difference:
    """A Mistake where the two were not trained and measured on the same images."""
    one, two = (predictions_of(run) for run in (a, b))
    if str(one["fingerprint"]) != str(two["fingerprint"]):
        raise Mistake(
            f"{a.run_id} and {b.run_id} have different images to train or to validate (splits "
            f"{str(one['fingerprint'])[:8]} and {str(two['fingerprint'])[:8]}): compare runs with "
            "the same data, split and split_seed"
        )
    if not same_images(one, two):
        raise Mistake(
            f"{a.run_id} and {b.run_id} are measured on the same images in different orders: their "
            "data folders are laid out differently"
        )
    right_a, right_b = one["predicted"] == one["true"], two["predicted"] == two["true"]
    fixed, broken = np.flatnonzero(~right_a & right_b), np.flatnonzero(right_a & ~right_b)
    gained, lost = moved(one["true"], right_b.astype(int) - right_a)
    return Difference(
        len(right_a),
        int((right_a & right_b).sum()),
        int((~right_a & ~right_b).sum()),
        fixed[np.argsort(-two["confidence"][fixed], kind="stable")],
        broken[np.argsort(-one["confidence"][broken], kind="stable")],
        mcnemar(len(fixed), len(broken)),
        gained,
        lost,
    )


def same_images(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    """In the same order: the split's fingerprint alone knows of none."""
    names = ("fingerprint", "index", "true")
    return all(np.array_equal(one[name], two[name]) for name in names)


def predictions_of(run: PastRun) -> dict[str, np.ndarray]:
    if run.predictions is None:
        raise Mistake(f"{run.folder or run.run_id} has no predictions.npz: not one epoch is whole")
    return run.predictions


def mcnemar(fixed: int, broken: int) -> float:
    """The exact two-sided p-value: a coin for each image on which only one of the two is right."""
    from scipy.stats import binomtest  # a second to import

    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def told_p(p: float) -> str:
    """For people; one that is too small for a float is not 0."""
    return f"p = {p:.2g}" if p else "p < 1e-300"


def moved(true: np.ndarray, change: np.ndarray) -> tuple[list, list]:
    """The classes that won and that lost most images; ties by class."""
    images = np.bincount(true)
    net = np.bincount(true, weights=change).astype(int)
    order = np.argsort(-net, kind="stable")
    told = [(int(c), int(images[c]), int(net[c])) for c in order]
    gained = [one for one in told if one[2] > 0][:MOVED]
    lost = sorted((one for one in told if one[2] < 0), key=lambda one: one[2])[:MOVED]
    return gained, lost


@dataclass(frozen=True)
class Shown:
    """One image of the gallery: true class, what each run took it for, and where each looked."""

    file: str
    true: str
    taken_for: tuple[str, str]
    pictures: tuple[Image.Image | None, ...]  # the image, A's map, B's map


def gallery(
    a: PastRun, b: PastRun, chosen: Sequence[np.ndarray], given: dict[str, Any]
) -> list[list[Shown]]:
    """The first images of each of `chosen`; maps are for the class that the run predicts."""
    positions = [part[:SHOWN] for part in chosen]
    flat = np.concatenate(positions).astype(int)
    if not len(flat):
        return [[] for _ in chosen]
    drawn = [_maps(run, flat, given) for run in (a, b)]
    data = drawn[0][0]
    index = predictions_of(a)["index"][flat]
    shown = []
    for place, i in enumerate(index):
        image, box, size = data.images[i], data.cache.boxes[i], data.images.shape[1]
        shown.append(
            Shown(
                data.file(i),
                data.class_name(data.labels[i]),
                tuple(
                    data.class_name(predictions_of(run)["predicted"][flat[place]]) for run in (a, b)
                ),
                _pictures(image, box, size, [maps for _, maps in drawn], place),
            )
        )
    ends = accumulate(map(len, positions), initial=0)
    return [shown[start:end] for start, end in pairwise(ends)]


def _maps(run: PastRun, positions: np.ndarray, given: dict[str, Any]) -> tuple:
    """The data and the run's maps for what it predicts."""
    from record import load_weights, open_run, read_predictions
    from viz import look

    assert run.folder, "runs of W&B have no predictions"
    _, data, learner = open_run(run.folder, given)
    epoch = load_weights(learner, run.folder / "best.pt")
    index = read_predictions(run.folder, data, epoch)["index"][positions]  # of these very images
    _, (_, maps) = look(learner, data.images[index], data.labels[index])
    return data, maps


def _pictures(image: np.ndarray, box: np.ndarray, size: int, maps: Sequence, place: int) -> tuple:
    from sheets import draw_box, overlay, photo

    found: list[Image.Image | None] = [photo(image, TILE)]
    for heat in maps:
        found.append(None if heat is None else overlay(image, heat[place], TILE))
    return tuple(one and draw_box(one, box, size) for one in found)


def why_no_gallery(runs: Sequence[PastRun], given: dict[str, Any]) -> str:
    """What is missing to draw the images; nothing where all is there."""
    if len({run.config.get("center_crop") for run in runs}) > 1:
        return "they saw other parts of the images (center_crop)"
    for run in runs:
        data_dir = given.get("data_dir") or run.config.get("data_dir", "")
        if run.folder is None or not (run.folder / "best.pt").is_file():
            return f"{run.run_id} has no best.pt here"
        if not Path(data_dir).is_dir():
            return f"the data of {run.run_id} ({data_dir}) are not here"
    return ""
