"""Training that grows from small images to full ones: `--resolution_schedule=32:0.67,48:0.9`.

Read: at 32 px until 67% of the steps are done, at 48 px until 90%, then at full size. Each epoch
is measured at the pixels of its last step, since a model sees little at others: trained to 32% at
32 px, it had 2% at 64 (LOG.md). Shares, not epochs, so that it stays the same story when `epochs`
changes.
"""

import re

from cli import Mistake

FULL = "full"  # from the first step to the last

Stages = tuple[tuple[int, float], ...]  # (pixels, share of the steps at which the stage ends)


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


def pixels_at(stages: Stages, done: float, full: int) -> int:
    """Pixels of the step that brings the training to this share of its steps; the last one is so
    always at full size.
    """
    return next((pixels for pixels, share in stages if done <= share), full)


def _mistake(text: str, why: str) -> Mistake:
    return Mistake(f"resolution_schedule={text!r}: {why}; write `full` or 32:0.67,48:0.9")
