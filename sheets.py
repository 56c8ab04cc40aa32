"""Contact sheets: images in rows and columns with words around them, and maps laid over images."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (110, 110, 110)
RIGHT, WRONG = (0, 110, 60), (190, 30, 30)
TILE = 128  # pixels on the page, of an image of any size
GAP, TEXT = 6, 14  # pixels between tiles; size of the text
OPAQUE = 0.5  # share of the map's colour where it lies over an image


@lru_cache
def font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans: pillow's own font has no arrow and no tick."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size
    )


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | Image.Image]],
    titles: Sequence[str],
    labels: Sequence[str],
    notes: Sequence[tuple[str, tuple[int, int, int]]] = (),
    tile: int = TILE,
) -> Image.Image:
    """Rows of images, a title over each column, a label before each row; `notes`, a second line of
    (text, colour) under the titles.
    """
    line = TEXT + GAP
    head = GAP + line * (2 if notes else 1)
    left = int(max(font().getlength(label) for label in labels)) + 2 * GAP
    size = (left + len(titles) * (tile + GAP), head + len(rows) * (tile + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    words = [[(title, INK) for title in titles], notes]
    for number, written in enumerate(words):
        for column, (text, colour) in enumerate(written):
            place = (left + column * (tile + GAP) + tile // 2, GAP + number * line)
            draw.text(place, fit(text, tile), colour, font(), anchor="ma")
    for row, (images, label) in enumerate(zip(rows, labels, strict=True)):
        y = head + row * (tile + GAP)
        draw.text((GAP, y + tile // 2), label, INK, font(), anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(as_tile(image, tile), (left + column * (tile + GAP), y))
    return sheet


def as_tile(image: np.ndarray | Image.Image, tile: int) -> Image.Image:
    """An array is shown pixel by pixel; a picture that is a tile already stays as it is."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if image.size == (tile, tile):
        return image
    return image.resize((tile, tile), Image.Resampling.NEAREST)


def photo(image: np.ndarray, tile: int = TILE) -> Image.Image:
    """An image enlarged smoothly."""
    return Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC)


def overlay(image: np.ndarray, heat: np.ndarray, tile: int = TILE) -> Image.Image:
    """A map (h, w) of 0..1 over an image, blue where it is low, red where it is high."""
    import cv2

    smooth = cv2.resize(heat.astype(np.float32), (tile, tile), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((255 * smooth).astype(np.uint8), cv2.COLORMAP_TURBO)
    colours = Image.fromarray(np.ascontiguousarray(colours[:, :, ::-1]))  # OpenCV's are BGR
    return Image.blend(photo(image, tile), colours, OPAQUE)


def draw_box(tile: Image.Image, box: Sequence[int], size: int) -> Image.Image:
    """The box (inclusive, in an image of `size`) around its pixels, readable on any ground."""
    scale = tile.width / size
    x0, y0 = (math.floor(v * scale) for v in box[:2])
    x1, y1 = (math.ceil((v + 1) * scale) - 1 for v in box[2:])
    if x0 >= 0 and x1 > x0 and y1 > y0:
        drawn = ImageDraw.Draw(tile)
        drawn.rectangle((x0, y0, x1, y1), outline=(0, 0, 0), width=3)
        inside = x0 + 1, y0 + 1, max(x0 + 1, x1 - 1), max(y0 + 1, y1 - 1)  # also of thin ones
        drawn.rectangle(inside, outline=(255, 255, 255), width=1)
    return tile


def fit(text: str, width: int, size: int = TEXT) -> str:
    """The text, shortened to `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
