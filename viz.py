"""Pictures of a run: what it was shown, how it learned, what it gets wrong, and where it looked.

    python viz.py runs/ID                      draws all of a run again, from its files and the data
    python viz.py runs/ID --image cat.jpg …    the five likeliest classes of one's own pictures, and
                                               where the model saw the first of them

About 15 s. The first writes `runs/ID/figures/`, as the run itself did at its end; the second a
picture beside each FILE, `FILE.explained.png`. Neither needs W&B.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import cli
import dice
from cli import Mistake
from mistakes import Explained, explain_mistakes, mistakes_sheet
from sheets import (
    GAP,
    INK,
    PAPER,
    RIGHT,
    TEXT,
    WRONG,
    contact_sheet,
    draw_box,
    fit,
    font,
    overlay,
    photo,
)

if TYPE_CHECKING:
    from augment import Augmenter
    from config import Config
    from data import Data
    from learner import Learner

PANEL = 7  # purpose of the dice, beside those of learner.py and mistakes.py
PANEL_IMAGES = 12
PANEL_TILE = 112
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SHOWN = 8  # training images on a sheet
LIKELIEST = 5


def augmented_batch(
    data: "Data", augmenter: "Augmenter", indices: np.ndarray, epochs: int = 4
) -> Image.Image:
    """The same training images as they are (first row) and as `epochs` epochs would show them;
    without cutmix and mixup, which mix a batch.
    """
    images = data.images[indices]
    rows = [images]
    rows += [augmenter(images, epoch, np.arange(len(indices))) for epoch in range(1, epochs + 1)]
    titles = [data.class_name(label) for label in data.labels[indices]]
    return contact_sheet(rows, titles, ["as it is", *(f"epoch {e + 1}" for e in range(epochs))])


def strength_ladder(data: "Data", config: "Config", indices: np.ndarray) -> Image.Image:
    """The same images, drawn with the same dice, from no augmentation to the strongest."""
    from augment import Augmenter

    images, places = data.images[indices], np.arange(len(indices))
    rows = []
    for strength in STRENGTHS:
        changed = dataclasses.replace(config, aug_strength=strength)
        augmentation = changed.augmentation(data.images.shape[1])
        rows.append(Augmenter(augmentation, data.fill, config.seed)(images, 1, places))
    titles = [data.class_name(label) for label in data.labels[indices]]
    return contact_sheet(rows, titles, [f"strength {strength:g}" for strength in STRENGTHS])


def panel_images(data: "Data", split_seed: int) -> np.ndarray:
    """The validation images of `val/gradcam`: the same in each epoch of each run with this split;
    one a class as far as it goes, with boxes that say something.
    """
    from localisation import usable

    order = data.val[dice.order(len(data.val), split_seed, PANEL)]
    boxed = usable(data.cache.boxes[order], data.images.shape[1])
    order = order[np.argsort(~boxed, kind="stable")]
    _, first = np.unique(data.labels[order], return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([np.sort(first), rest])[:PANEL_IMAGES]]


def gradcam_panel(
    learner: "Learner",
    data: "Data",
    indices: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> Image.Image:
    """Image with its box, map for the true class, map for the predicted one; right or wrong."""
    images, true = data.images[indices], data.labels[indices]
    predicted, (true_maps, predicted_maps) = look(learner, images, true, check)
    size, tile = images.shape[1], PANEL_TILE
    boxes = data.cache.boxes[indices]
    rows = [[draw_box(photo(i, tile), b, size) for i, b in zip(images, boxes, strict=True)]]
    labels = ["image"]
    for name, maps in (("map: true", true_maps), ("map: predicted", predicted_maps)):
        if maps is not None:
            heat = [overlay(*pair, tile) for pair in zip(images, maps, strict=True)]
            rows.append([draw_box(h, b, size) for h, b in zip(heat, boxes, strict=True)])
            labels.append(name)
    notes = [
        ("✓", RIGHT) if a == b else (f"✗ {data.class_name(b)}", WRONG)
        for a, b in zip(true, predicted, strict=True)
    ]
    return contact_sheet(rows, [data.class_name(label) for label in true], labels, notes, tile)


def look(
    learner: "Learner",
    images: np.ndarray,
    true: np.ndarray,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, tuple]:
    """Predicted classes, and the maps (0..1) for the true and for the predicted ones."""
    import torch

    from localisation import class_maps

    if not learner.explains:
        from gradcam import Explainer

        explain = Explainer(learner, check)
        logits, true_maps = explain(images, true)
        predicted = logits.argmax(1)
        return predicted, (true_maps, explain(images, predicted)[1])
    with torch.inference_mode():
        mode = learner.evaluated.training
        learner.evaluated.eval()
        logits, maps = learner.measure(torch.from_numpy(images))
        learner.evaluated.train(mode)
        weight = learner.evaluated.get_classifier().weight
        predicted = logits.argmax(1)
        found = [
            class_maps(maps, weight, classes)
            for classes in (torch.from_numpy(true).to(maps.device), predicted)
        ]
    return predicted.cpu().numpy(), tuple(stretched(one.cpu().numpy()) for one in found)


def stretched(maps: np.ndarray) -> np.ndarray:
    """Each map to 0..1, as pytorch-grad-cam does it; a map of zeros stays one."""
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-7)


def draw_run(
    folder: Path,
    config: "Config",
    data: "Data",
    learner: "Learner",
    rows: list[dict[str, Any]],
    best_epoch: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Path], list[Explained]]:
    """Every picture of a run into `folder`/figures, by its key in W&B; the learner has the weights
    of best.pt. Also the mistakes, for a table.
    """
    import charts
    from augment import Augmenter
    from record import read_predictions

    predictions = read_predictions(folder, data, best_epoch)
    names, true, predicted = data.cache.names, predictions["true"], predictions["predicted"]
    seed = config.split_seed
    mistakes = explain_mistakes(learner, data, predictions, config.mistakes, seed, check)
    some = data.train[dice.order(len(data.train), seed, PANEL)[:SHOWN]]
    augmenter = Augmenter(config.augmentation(data.images.shape[1]), data.fill, config.seed)
    title = f"{folder.name}: {config.model} on {config.dataset}, max_lr {config.max_lr:g}"
    pictures: dict[str, tuple[str, Callable[[], Any]]] = {
        "curves": ("curves.png", lambda: charts.curves(rows, best_epoch, title)),
        "val/classes": ("classes.png", lambda: charts.class_accuracy(true, predicted, names)),
        "val/confusions": ("confusions.png", lambda: charts.confusions(true, predicted, names)),
        "augmented": ("augmented.png", lambda: augmented_batch(data, augmenter, some)),
        "strengths": ("strengths.png", lambda: strength_ladder(data, config, some)),
    }
    if config.mistakes:
        pictures["mistakes"] = ("mistakes.png", lambda: mistakes_sheet(mistakes))
    paths = {}
    for key, (name, draw) in pictures.items():
        check()
        paths[key] = write_picture(draw(), folder / "figures" / name)
    panel = gradcam_panel(learner, data, panel_images(data, seed), check)
    write_picture(panel, folder / "figures" / "gradcam.jpg")  # W&B has that of each epoch
    return paths, mistakes


def write_picture(picture: Any, path: Path) -> Path:
    """A pillow image or a matplotlib figure, whole or not at all."""
    from run_folder import writing

    path.parent.mkdir(exist_ok=True)
    with writing(path) as file:
        if isinstance(picture, Image.Image):
            kind = {"quality": 85, "format": "JPEG"} if path.suffix == ".jpg" else {"format": "PNG"}
            picture.save(file, **kind)
        else:
            picture.savefig(file, format="png", dpi=110)
    return path


def redraw(folder: Path, changed: dict[str, Any]) -> int:
    import checkpoint
    from record import HALF_KEPT, load_weights, open_run
    from run_folder import RunFolder

    folder = folder.resolve()  # "." has no name
    config, data, learner = open_run(folder, changed)
    held = RunFolder(folder.parent, folder.name)  # a training must not draw at the same time
    for name in ("predictions.npz", "last.pt"):
        if not (folder / name).is_file():
            raise Mistake(f"{folder} has no {name}: its first epoch was not finished")
    last = checkpoint.load(folder / "last.pt", ("history", "best"))
    rows, best_epoch = last["history"], load_weights(learner, folder / "best.pt")
    if best_epoch != last["best"]["best_epoch"]:
        raise Mistake(f"{folder}: {HALF_KEPT}")
    paths, _ = draw_run(folder, config, data, learner, rows, best_epoch)
    for path in (*paths.values(), folder / "figures" / "gradcam.jpg"):
        print(f"wrote {path}")
    held.close()
    return 0


def explain_files(folder: Path, files: Sequence[Path], changed: dict[str, Any]) -> int:
    """Pictures of one's own: the middle square of each, at the size that the model knows."""
    from record import load_weights, open_run

    pictures = [read_picture(file) for file in files]
    _, data, learner = open_run(folder, changed)
    load_weights(learner, folder / "best.pt")
    images = as_seen(pictures, data)
    from gradcam import Explainer

    explain = Explainer(learner)
    logits, _ = explain(images, np.zeros(len(images), np.int64))
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    best = np.argsort(-shares, axis=1, kind="stable")[:, :LIKELIEST]
    _, maps = explain(images, best[:, 0])
    for i, file in enumerate(files):
        lines = [f"{shares[i, label]:6.1%}  {data.class_name(label)}" for label in best[i]]
        print(f"{file}:", *(f"  {line}" for line in lines), sep="\n")
        path = file.with_name(f"{file.name}.explained.png")
        write_picture(answer(images[i], None if maps is None else maps[i], lines), path)
        print(f"  wrote {path}")
    return 0


def as_seen(pictures: Sequence[Image.Image], data: "Data") -> np.ndarray:
    """Square pictures at the data's size, cut as the data's images are."""
    from data import middle

    size = (data.stored_size, data.stored_size)
    resized = [np.asarray(one.resize(size, Image.Resampling.BOX)) for one in pictures]
    return middle(np.stack(resized), data.images.shape[1])


def answer(image: np.ndarray, heat: np.ndarray | None, lines: Sequence[str]) -> Image.Image:
    """A picture of one's own, where the model saw its likeliest class, and the five classes."""
    tile = 2 * PANEL_TILE
    tiles = [photo(image, tile)] + ([] if heat is None else [overlay(image, heat, tile)])
    sheet = Image.new("RGB", (len(tiles) * (tile + GAP) + 320, tile + 2 * GAP), PAPER)
    for place, picture in enumerate(tiles):
        sheet.paste(picture, (GAP + place * (tile + GAP), GAP))
    draw = ImageDraw.Draw(sheet)
    x = 3 * GAP + len(tiles) * (tile + GAP)
    for number, line in enumerate(lines):
        draw.text((x, 2 * GAP + number * 2 * TEXT), fit(line, 320 - 4 * GAP), INK, font())
    return sheet


def read_picture(file: Path) -> Image.Image:
    """Upright, RGB, its middle square."""
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise Mistake(f"--image: {file} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Mistake(f"--image: {file} is no whole picture ({error})") from error
    side = min(picture.size)
    return ImageOps.fit(picture, (side, side))


def main(arguments: list[str]) -> int:
    from config import add_looks, given
    from ending import in_one_line

    parser = cli.Parser(
        prog="python viz.py", description=__doc__, usage="%(prog)s RUN_DIR [--image FILE ...]"
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="explain these")
    add_looks(parser)
    options = parser.parse_args(arguments)
    with in_one_line(options.run, "call it again"):
        if options.image:
            return explain_files(options.run, options.image, given(options))
        return redraw(options.run, given(options))


if __name__ == "__main__":
    cli.run(main)
