"""Pictures: one function a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (30, 30, 30), (255, 255, 255)
TILE = 128  # pixels on the page, of an image of any size
GAP, TEXT = 6, 14  # pixels between tiles; size of the text
LABEL_WIDTH = 74


def augmented_batch(data, augmenter, indices: np.ndarray, epochs: int = 4) -> Image.Image:
    """The same training images as they are (first row) and as `epochs` epochs would show them."""
    images = data.images[indices]
    rows = [images]
    rows += [augmenter(images, epoch, np.arange(len(indices))) for epoch in range(1, epochs + 1)]
    titles = [data.class_name(label) for label in data.labels[indices]]
    return contact_sheet(rows, titles, ["as it is", *(f"epoch {e + 1}" for e in range(epochs))])


def contact_sheet(
    rows: Sequence[np.ndarray], titles: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """Rows of uint8 images of one size, a title over each column, a label before each row."""
    font = ImageFont.load_default(TEXT)
    head = TEXT + 2 * GAP
    width = LABEL_WIDTH + len(titles) * (TILE + GAP)
    sheet = Image.new("RGB", (width, head + len(rows) * (TILE + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        middle = LABEL_WIDTH + column * (TILE + GAP) + TILE // 2
        draw.text((middle, head // 2), _fit(title, font, TILE), INK, font, anchor="mm")
    for row, (images, label) in enumerate(zip(rows, labels, strict=True)):
        y = head + row * (TILE + GAP)
        draw.text((GAP, y + TILE // 2), label, INK, font, anchor="lm")
        for column, image in enumerate(images):
            tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (LABEL_WIDTH + column * (TILE + GAP), y))
    return sheet


def _fit(text: str, font, width: int) -> str:
    """The text, shortened to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
