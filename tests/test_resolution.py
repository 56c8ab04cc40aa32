import pytest

import resolution
from cli import Mistake
from config import from_mapping

GROWS = resolution.parse("32:0.67, 48:0.92")


def test_shares_of_the_epochs_become_whole_epochs():
    sizes = [resolution.pixels_at(GROWS, epoch, 12, 64) for epoch in range(1, 13)]
    assert sizes == [32] * 8 + [48] * 3 + [64]
    assert resolution.pixels_at(GROWS, 1, 1, 64) == 64  # the last epoch is at full size
    assert [resolution.pixels_at(GROWS, e, 2, 64) for e in (1, 2)] == [32, 64]
    assert [resolution.pixels_at(GROWS, e, 5, 64) for e in range(1, 6)] == [32, 32, 32, 48, 64]
    assert [resolution.pixels_at((), e, 2, 64) for e in (1, 2)] == [64, 64]


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
