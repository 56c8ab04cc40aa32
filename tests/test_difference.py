"""What one run fixed and broke against another: by hand, and by `report.py diff`."""

import numpy as np
import pytest
from past import write_run

from cli import Mistake
from collection import read_run
from conftest import assert_mistake, run
from difference import compare, mcnemar, moved, told_p, why_no_gallery
from report_certainty import paired_p
from report_diff import diff_page


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 2 / 2**5), (0, 5, 2 / 2**5), (6, 1, 2 * 8 / 2**7)],
)
def test_mcnemar_is_a_coin_for_each_image_that_changed(fixed, broken, p):
    assert mcnemar(fixed, broken) == pytest.approx(p)


def test_what_no_float_holds_is_told():
    assert [told_p(mcnemar(*found)) for found in ((5, 5), (12, 2), (4000, 100))] == [
        "p = 1",
        "p = 0.013",
        "p < 1e-300",
    ]


def test_classes_that_moved():
    true = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    change = np.array([1, 1, 0, 1, -1, -1, -1, -1])
    gained, lost = moved(true, change)
    assert gained == [(0, 3, 2)]
    assert lost == [(2, 2, -2), (3, 1, -1)]  # class 1 is where it was


def with_predictions(path, predicted, confidence, **changed):
    """A run of five images of class 0..4, as it predicted them."""
    folder = write_run(path, changed.pop("run_id"), images=5, **changed)
    told = read_run(folder)
    told.predictions["predicted"][:] = predicted
    told.predictions["confidence"][:] = confidence
    return told


def test_fixed_and_broken_the_surest_first(tmp_path):
    a = with_predictions(tmp_path, [0, 0, 0, 3, 4], [0.1, 0.2, 0.3, 0.4, 0.9], run_id="a")
    b = with_predictions(tmp_path, [0, 1, 2, 0, 0], [0.1, 0.2, 0.8, 0.4, 0.5], run_id="b")
    found = compare(a, b)
    assert (found.images, found.both_right, found.both_wrong) == (5, 1, 0)
    assert found.fixed.tolist() == [2, 1]  # by b's confidence
    assert found.broken.tolist() == [4, 3]  # by a's
    assert found.p == 1.0
    assert [label for label, *_ in found.gained] == [1, 2]
    assert [label for label, *_ in found.lost] == [3, 4]
    backwards = compare(b, a)
    assert backwards.fixed.tolist() == [4, 3]


def test_other_images_are_refused(tmp_path):
    a = with_predictions(tmp_path, range(5), [0.5] * 5, run_id="a")
    b = with_predictions(tmp_path, range(5), [0.5] * 5, run_id="b", fingerprint="0123456789ab")
    with pytest.raises(Mistake, match="different images .*f556ae6c and 01234567"):
        compare(a, b)
    b = with_predictions(tmp_path, range(5), [0.5] * 5, run_id="d")
    assert compare(a, b).p == paired_p(a, b) == 1.0
    b.predictions["true"][:] = b.predictions["true"][::-1].copy()  # another layout, the same images
    with pytest.raises(Mistake, match="in different orders"):
        compare(a, b)
    assert paired_p(a, b) is None
    with pytest.raises(Mistake, match="no predictions.npz"):
        compare(a, read_run(write_run(tmp_path, "c", predictions=False)))


def test_a_page_without_the_data_says_so(tmp_path):
    hostile = ("<script>alert(1)</script>", "square", "triangle", "ring", "heart")
    a = with_predictions(tmp_path, [0, 0, 0, 3, 4], [0.5] * 5, run_id="a", classes=hostile)
    b = with_predictions(tmp_path, [1, 1, 2, 3, 4], [0.5] * 5, run_id="b", classes=hostile)
    assert "no best.pt" in why_no_gallery((a, b), {})
    page, said = diff_page(a, b, {})
    assert "2 fixed, 1 broken, net +1; no more than the choice" in said
    assert "No pictures: a has no best.pt here." in page
    cropped = with_predictions(tmp_path, [1] * 5, [0.5] * 5, run_id="c", center_crop=48)
    assert "center_crop" in why_no_gallery((a, cropped), {})
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_two_real_runs(start, tmp_path):
    runs = [start(tmp_path, run_id=name, seed=seed, epochs=1) for seed, name in enumerate("ab")]
    assert [one.wait() for one in runs] == [0, 0]
    a, b = (str(one.folder) for one in runs)
    done = run("report.py", "diff", a, b, "-o", tmp_path / "diff.html")
    assert done.returncode == 0, done.stderr
    found = compare(*(read_run(one.folder) for one in runs))
    assert f"{len(found.fixed)} fixed, {len(found.broken)} broken" in done.stdout
    page = (tmp_path / "diff.html").read_text()
    shown = min(len(found.fixed), 16) + min(len(found.broken), 16)
    assert shown > 0
    assert page.count("data:image/jpeg;base64,") == shown
    assert_mistake(run("report.py", "diff", a), "diff")
    assert_mistake(run("report.py", "diff", a, b, "-o", tmp_path), "cannot be written")
