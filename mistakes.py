"""What a run gets wrong, explained: which images, where the model saw what it said, and where it
would have seen what is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

import dice
from sheets import FAINT, GAP, INK, PAPER, TEXT, draw_box, fit, font, overlay, photo

if TYPE_CHECKING:
    from data import Data
    from learner import Learner

CHOICE = 8  # purpose of the dice, beside those of learner.py and viz.py
TILE = 120
COLUMNS = 3  # mistakes side by side, three tiles each
OF_ONE = ("index", "true", "predicted", "confidence")  # in predictions.npz


def choose_mistakes(
    true: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Positions of wrong predictions: one half the most confident, then a random sample."""
    wrong = np.flatnonzero(true != predicted)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][: (count + 1) // 2]
    others = np.setdiff1d(wrong, surest)
    sample = others[dice.order(len(others), seed, CHOICE)[: count - len(surest)]]
    return np.concatenate([surest, sample]).astype(np.int64)


@dataclass
class Explained:
    """One wrong prediction; the maps are absent where the model has none."""

    file: str
    true: str
    predicted: str
    confidence: float
    loss: float
    image: Image.Image
    map_predicted: Image.Image | None
    map_true: Image.Image | None


def explain_mistakes(
    learner: "Learner",
    data: "Data",
    predictions: dict[str, np.ndarray],
    count: int,
    seed: int,
    check: Callable[[], None],
) -> list[Explained]:
    """The mistakes that a run shows, by the learner's weights; `check` may end it in between."""
    from gradcam import AT_ONCE, Explainer

    chosen = choose_mistakes(*(predictions[key] for key in OF_ONE[1:]), count, seed)
    explainer, told = Explainer(learner), []
    for start in range(0, len(chosen), AT_ONCE):
        check()
        part = {k: predictions[k][chosen[start : start + AT_ONCE]] for k in OF_ONE}
        told += _explain_some(explainer, data, **part)
    return told


def _explain_some(
    explainer, data: "Data", index: np.ndarray, true: np.ndarray, predicted: np.ndarray, confidence
) -> list[Explained]:
    images, boxes = data.images[index], data.cache.boxes[index]
    logits, true_maps = explainer(images, true)
    _, predicted_maps = explainer(images, predicted)
    losses = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    losses -= logits[np.arange(len(index)), true]

    def drawn(maps: np.ndarray | None, i: int) -> Image.Image | None:
        if maps is None:
            return None
        return draw_box(overlay(images[i], maps[i], TILE), boxes[i], images.shape[1])

    return [
        Explained(
            data.file(index[i]),
            data.class_name(true[i]),
            data.class_name(predicted[i]),
            float(confidence[i]),
            float(losses[i]),
            photo(images[i], TILE),
            drawn(predicted_maps, i),
            drawn(true_maps, i),
        )
        for i in range(len(index))
    ]


def mistakes_sheet(mistakes: Sequence[Explained]) -> Image.Image:
    """For each: "true → predicted (confidence)", the image, the two maps with the box."""
    line = TEXT + GAP
    mapped = bool(mistakes) and mistakes[0].map_true is not None
    width = max((3 if mapped else 1) * (TILE + GAP) - GAP, 260)
    across, down = width + 4 * GAP, line + TILE + 3 * GAP
    columns = max(min(COLUMNS, len(mistakes)), 1)
    head = 2 * line
    size = (columns * across, head + -(-len(mistakes) // columns) * down)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    legend = "true → predicted (confidence)" if mistakes else "no mistakes"
    if mapped:
        legend += (
            " — image; Grad-CAM of the predicted, of the true class, each to its own maximum; "
            "box: the object"
        )
    draw.text((2 * GAP, GAP), fit(legend, sheet.width - 4 * GAP), FAINT, font())
    for number, one in enumerate(mistakes):
        x, y = 2 * GAP + number % columns * across, head + number // columns * down
        draw.text((x, y), _title(one, width), INK, font())
        for place, picture in enumerate((one.image, one.map_predicted, one.map_true)):
            if picture is not None:
                sheet.paste(picture, (x + place * (TILE + GAP), y + line))
    return sheet


def _title(one: Explained, width: int) -> str:
    """Both names share the room; one that needs less than its half leaves the rest to the other."""
    end = f" ({one.confidence:.0%})"
    room = width - font().getlength(f" → {end}")
    need = font().getlength(one.true)
    predicted = fit(one.predicted, int(max(room / 2, room - need)))
    true = fit(one.true, int(room - font().getlength(predicted)))
    return f"{true} → {predicted}{end}"
