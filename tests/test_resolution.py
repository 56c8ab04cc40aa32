import pytest

import resolution
from cli import Mistake
from collection import PastRun
from config import from_mapping
from record import worth

GROWS = resolution.parse("32:0.67, 48:0.92")


@pytest.mark.parametrize(
    ("stages", "steps", "expected"),
    [
        (GROWS, 12, [32] * 8 + [48] * 3 + [64]),
        (GROWS, 100, [32] * 67 + [48] * 25 + [64] * 8),
        (GROWS, 5, [32] * 3 + [48, 64]),
        (GROWS, 1, [64]),  # the last is at full size
        (resolution.parse("32:0.7,48:0.9"), 10 * 602, [32] * 4214 + [48] * 1204 + [64] * 602),
        ((), 2, [64, 64]),
    ],
)
def test_shares_of_the_steps(stages, steps, expected):
    found = [resolution.pixels_at(stages, step / steps, 64) for step in range(1, steps + 1)]
    assert found == expected


REFUSED = {
    "": "text",
    "32": "PIXELS:SHARE",
    "32:": "PIXELS:SHARE",
    "32:0.5;48:0.9": "PIXELS:SHARE",
    "32:-0.5": "PIXELS:SHARE",
    "32:nan": "PIXELS:SHARE",
    "48:0.5,32:0.9": "pixels must grow",
    "32:0.5,32:0.9": "pixels must grow",
    "4:0.5": "pixels must grow",
    "32:0.9,48:0.5": "shares must grow",
    "32:0": "shares must grow",
    "32:1.0": "shares must grow",
    "64:0.5": "below the full size, 64 px",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(Mistake, match=REFUSED[text]):
        from_mapping({"resolution_schedule": text, "image_size": 64})


def test_what_larger_images_reached_is_the_best():
    accs = [(32, 0.3), (32, 0.4), (64, 0.2), (64, 0.35), (64, 0.25)]
    rows = [{"epoch": n, "pixels": px, "val/acc": acc} for n, (px, acc) in enumerate(accs, 1)]
    best = [max(rows[:epoch], key=worth)["epoch"] for epoch in range(1, 6)]
    assert best == [1, 2, 3, 4, 4]
    assert PastRun("x", None, "finished", {}, rows, {}).best() == (4, 0.35)
    assert PastRun("x", None, "running", {}, rows[:2], {}).best() == (2, 0.4)
