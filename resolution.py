"""Training that grows from small images to full ones: `--resolution_schedule=32:0.67,48:0.9`.

Read: at 32 px until 67% of the epochs are done, at 48 px until 90%, then at full size. Each epoch
is measured at the pixels that it trained at, since a model sees little at others: trained to 20% at
32 px, it had 5% at 64. Shares, not epochs, so that it stays the same story when `epochs` changes.
"""

import re

from cli import Mistake

FULL = "full"  # every epoch at full size

Stages = tuple[tuple[int, float], ...]  # (pixels, share of the epochs at which the stage ends)


def parse(text: str) -> Stages:
    """The stages; a Mistake where pixels or shares do not grow, or it reads otherwise."""
    if text == FULL:
        return ()
    stages = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+):(\d*\.?\d+)\s*", part)
        if not match:
            raise _mistake(text, f"{part.strip()!r} is not PIXELS:SHARE")
        stages.append((int(match[1]), float(match[2])))
    pixels, shares = zip(*stages, strict=True)
    if not min(pixels) >= 8 or sorted(set(pixels)) != list(pixels):
        raise _mistake(text, "pixels must grow from 8 or more")
    if sorted({0.0, *shares, 1.0}) != [0.0, *shares, 1.0]:
        raise _mistake(text, "shares must grow between 0 and 1")
    return tuple(stages)


def check_sizes(stages: Stages, full: int) -> None:
    if stages and stages[-1][0] >= full:
        raise Mistake(
            f"resolution_schedule: {stages[-1][0]} px is not below the full size, {full} px"
        )


def pixels_at(stages: Stages, epoch: int, epochs: int, full: int) -> int:
    """Pixels of epoch 1..epochs; a stage ends after the whole epoch nearest to its share, and the
    last epoch is at full size.
    """
    for pixels, share in stages:
        if epoch <= min(int(share * epochs + 0.5), epochs - 1):
            return pixels
    return full


def _mistake(text: str, why: str) -> Mistake:
    return Mistake(f"resolution_schedule={text!r}: {why}; write `full` or 32:0.67,48:0.9")
