"""The page of `report.py diff A B`: what B fixed and what it broke, against A, image by image."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cli import Failure, Mistake
from collection import PastRun
from difference import (
    LIKELY,
    TILE,
    Difference,
    Shown,
    compare,
    gallery,
    told_p,
    why_no_gallery,
)
from ending import in_one_line
from page import (
    Cell,
    Column,
    Html,
    Row,
    Section,
    document,
    facts,
    join,
    notice,
    picture,
    table,
    tag,
)
from sheets import GAP, PAPER


def diff_page(a: PastRun, b: PastRun, given: dict[str, Any]) -> tuple[str, str]:
    """The file, and what it says in one line."""
    found = compare(a, b)
    said = sentence(a, b, found)
    lead = join(
        [
            tag("h1", f"{b.run_id} against {a.run_id}"),
            tag("p", said, class_="summary"),
            facts(
                [
                    ("fixed", f"{len(found.fixed):,}", "wrong before, right now"),
                    ("broken", f"{len(found.broken):,}", "right before, wrong now"),
                    ("right in both", f"{found.both_right:,}", f"of {found.images:,}"),
                    ("wrong in both", f"{found.both_wrong:,}", f"of {found.images:,}"),
                    ("McNemar test", told_p(found.p), "exact, two-sided"),
                ]
            ),
        ]
    )
    sections = [
        Section("config", "What differs between them", _config(a, b), "Config"),
        Section("classes", "The classes that moved most", _classes(a, found), "Classes"),
        *_galleries(a, b, found, given),
    ]
    return document(f"{b.run_id} against {a.run_id}", lead, sections), said


def sentence(a: PastRun, b: PastRun, found: Difference) -> str:
    net = len(found.fixed) - len(found.broken)
    before, now = (
        (found.both_right + len(only)) / found.images for only in (found.broken, found.fixed)
    )
    than = "the choice of the images explains"
    word = f"more than {than}" if found.p < LIKELY else f"no more than {than}"
    return (
        f"{b.run_id} is right on {now:.2%} of {found.images:,} images, {a.run_id} on "
        f"{before:.2%}: {len(found.fixed):,} fixed, {len(found.broken):,} broken, net "
        f"{net:+,}; {word} (exact McNemar test, {told_p(found.p)})"
    )


def _config(a: PastRun, b: PastRun) -> Html:
    keys = [key for key in {**a.config, **b.config} if a.config.get(key) != b.config.get(key)]
    if not keys:
        return tag("p", "Nothing: both have the same config.")
    columns = [Column("key", numeric=False), Column(a.run_id), Column(b.run_id)]
    rows = [Row([key, *(_short(run.config.get(key, "–")) for run in (a, b))]) for key in keys]
    return table(columns, rows, "config that differs")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _classes(run: PastRun, found: Difference) -> Html:
    moved = [*found.gained, *reversed(found.lost)]
    if not moved:
        return tag("p", "No class has more or fewer images right.")
    columns = [Column("class", numeric=False), Column("images"), Column("more of them right")]
    rows = [
        Row([run.class_name(label), Cell(f"{images:,}", images), Cell(f"{net:+,}", net)])
        for label, images, net in moved
    ]
    return table(columns, rows, "classes that gained and lost", sortable=True)


def _galleries(a: PastRun, b: PastRun, found: Difference, given: dict[str, Any]) -> list[Section]:
    why = why_no_gallery((a, b), given)
    try:
        with in_one_line(b.folder, "the page needs no pictures"):
            drawn = None if why else gallery(a, b, (found.fixed, found.broken), given)
    # Other data, a damaged checkpoint, too little memory: the counts do not need them.
    except (Mistake, Failure) as error:
        why, drawn = str(error), None
    if drawn is None:
        return [Section("images", "The images", notice(f"No pictures: {why}."), "Images")]
    fixed, broken = drawn
    told = [
        ("fixed", "Fixed", fixed, len(found.fixed), f"{b.run_id} is surest of"),
        ("broken", "Broken", broken, len(found.broken), f"{a.run_id} was surest of"),
    ]
    return [
        Section(anchor, title, _gallery(a, b, shown, of, which), title)
        for anchor, title, shown, of, which in told
    ]


def _gallery(a: PastRun, b: PastRun, shown: Sequence[Shown], of: int, which: str) -> Html:
    if not shown:
        return tag("p", "No image.")
    _, *maps = shown[0].pictures
    looked = [f"where {run.run_id} looked" for run, heat in zip((a, b), maps, strict=True) if heat]
    parts = ", then ".join(["the image", *looked])
    ends = " for what it took it for. A" if looked else ". A"
    intro = f"{len(shown)} of {of:,}, those that {which}: {parts}{ends} box is the object's."
    cards = [
        picture(
            _side_by_side(one.pictures),
            f"{one.true}: {parts}",
            join([tag("b", one.true), f": {one.taken_for[0]} → {one.taken_for[1]}"]),
        )
        for one in shown
    ]
    return join([tag("p", intro), tag("div", *cards, class_="grid")])


def _side_by_side(pictures: Sequence[Image.Image | None]) -> bytes:
    shown = [one for one in pictures if one is not None]
    sheet = Image.new("RGB", (len(shown) * (TILE + GAP) - GAP, TILE), PAPER)
    for place, one in enumerate(shown):
        sheet.paste(one, (place * (TILE + GAP), 0))
    told = io.BytesIO()
    sheet.save(told, "JPEG", quality=90)
    return told.getvalue()
