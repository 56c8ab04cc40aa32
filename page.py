"""The page that reports are written on: one HTML file that opens from disk, without a network.

`document` makes the file of a title and sections; `table`, `chart`, `picture`, `facts`, `notice`
and `code` make what stands in them. Text is escaped wherever it enters: only what is `Html`, which
`tag` returns, is taken as it is. page.css and page.js are written into the file, and plotly.js
where there is a chart. The file forbids itself every connection and every script but these.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import Mistake

HERE = Path(__file__).parent
VOID = ("br", "img", "input", "meta")
# Neither valid in HTML nor of any use: control characters, and halves of a character.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
PICTURE_BYTES = 700_000  # a larger one is written again as JPEG

# Told apart by everyone (Okabe and Ito's orange, blue and green), as CSS variables and in charts.
# `ramp` goes from the worst run to the best but one; `best` is the best run, everywhere.
LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#1b1f27",
    "soft": "#5b6472",
    "line": "#dfe3e9",
    "grid": "#edf0f3",
    "best": "#c8500a",
    "pin": "#00805c",
    "accent": "#0b5cad",
    "bar": "#5b8ec4",
    "bad": "#a3331f",
    "warn": "#fdf3e3",
    "ramp": ["#a9bcd2", "#6c9bcb", "#1d5fa8"],
}
DARK = {
    "paper": "#14171c",
    "raised": "#1c2027",
    "ink": "#e8eaee",
    "soft": "#9ba4b2",
    "line": "#323843",
    "grid": "#252a32",
    "best": "#ff9d4d",
    "pin": "#3ddba6",
    "accent": "#79b8ff",
    "bar": "#4d84bd",
    "bad": "#ff8d78",
    "warn": "#33291a",
    "ramp": ["#55657b", "#4c80b4", "#8cc5ff"],
}


class Html(str):
    """Markup that is safe already."""


def escape(value: Any) -> Html:
    """Text as markup; what is Html stays as it is."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(UNPRINTABLE.sub("�", str(value)), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """`tag("a", "text", href="#x", class_="y", data_run="z")`; None and False leave no trace."""
    told = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        told += f" {key}" if value is True else f' {key}="{escape(value)}"'
    if name in VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{join(children)}</{name}>")


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Several pieces, those that are None left out."""
    return Html(escape(between).join(escape(part) for part in parts if part is not None))


def embedded(value: Any) -> Html:
    """JSON that can stand in a <script>, whatever its texts are; NaN and infinity become null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # ASCII otherwise: U+2028 and halves of characters are escaped
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


@dataclass(frozen=True)
class Section:
    """A part of the page, with a heading and an entry in the contents."""

    anchor: str
    title: str
    body: Html
    short: str = ""  # in the contents


@dataclass(frozen=True)
class Column:
    title: str
    key: str = ""  # by which the filter knows it: `key>0.5`
    hint: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What is shown, and what is sorted and filtered by: a number or a text; None goes last."""

    shown: Any
    value: float | str | None = None
    mark: str = ""  # a CSS class


@dataclass(frozen=True)
class Row:
    cells: Sequence[Any]  # Cell, or what is shown
    run: str | None = None  # followed through all charts by a click, and filtered there, too
    mark: str = ""


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    caption: str,
    filtered: str = "",
    sortable: bool = False,
) -> Html:
    """A table that scrolls by itself where it is too wide; `filtered`: the filter's placeholder."""
    heads = [_head(column, sortable) for column in columns]
    body = [_row(columns, row) for row in rows]
    made = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
    )
    scroller = tag("div", made, class_="scroller", tabindex="0", role="region", aria_label=caption)
    if not filtered:
        return scroller
    box = tag("input", type="search", placeholder=filtered, aria_label="filter", spellcheck="false",
              autocomplete="off")  # fmt: skip
    bar = tag("div", box, tag("output", f"{len(rows)} of {len(rows)}"), class_="filter")
    return tag("div", bar, scroller, class_="filtered")


def _head(column: Column, sortable: bool) -> Html:
    title = Html(escape(column.title).replace("_", "_<wbr>"))
    title = tag("button", title, type="button") if sortable else title
    kind = "number" if column.numeric else None
    key = column.key or None
    return tag("th", title, scope="col", class_=kind, title=column.hint or None, data_key=key)


def _row(columns: Sequence[Column], row: Row) -> Html:
    cells = []
    for column, cell in zip(columns, row.cells, strict=True):
        cell = cell if isinstance(cell, Cell) else Cell(cell, None)
        value = cell.value
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        marks = " ".join(filter(None, ("number" if column.numeric else "", cell.mark)))
        shown = value if value is None else repr(value) if isinstance(value, float) else value
        cells.append(tag("td", cell.shown, class_=marks or None, data_v=shown))
    return tag("tr", *cells, class_=row.mark or None, data_run=row.run)


def chart(figure: Mapping[str, Any], caption: Any, wide: bool = True, least: int = 0) -> Html:
    """A plotly figure as a dict, with its caption.

    `data` and `layout` as plotly has them, `height` in pixels, and `narrow`: changes of the layout
    on a phone. A colour may be "$ink" or any other name above, or "$ramp 0.4". `meta` of a trace
    says which run it is ("run") or whose its points are ("runs"). `least`: pixels below which it
    scrolls by itself.
    """
    plot = tag("div", class_="plot", style=f"height:{figure['height']}px")
    data = tag("script", embedded(figure), type="application/json")
    inner = tag("div", plot, data, class_="holder", style=f"min-width:{least}px" if least else None)
    scroller = tag("div", inner, class_="scroller" if least else None)
    return tag("figure", scroller, tag("figcaption", caption), class_=f"chart{' wide' * wide}")


def picture(source: Path | bytes, alt: str, caption: Any = "", least: int = 0) -> Html:
    """A JPEG, PNG or WebP inside the page; `least`: pixels below which it scrolls by itself."""
    from PIL import Image

    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            kind = opened.format.lower()
            if kind not in ("jpeg", "png", "webp") or len(content) > PICTURE_BYTES:
                content, kind = _jpeg(opened), "jpeg"
    except (OSError, SyntaxError) as error:  # as pillow has it for a PNG
        raise Mistake(f"{source}: cannot be read as a picture; remove it") from error
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    shown = tag(
        "img",
        src=address,
        alt=alt,
        width=width,
        height=height,
        style=f"min-width:{min(least, width)}px" if least else None,
    )
    told = tag("figcaption", caption) if caption else None
    return tag("figure", tag("div", shown, class_="scroller"), told, class_="picture")


def _jpeg(image: Any) -> bytes:
    """As good as there is room for."""
    plain = image.convert("RGB")
    for quality in (88, 70, 45):
        told = io.BytesIO()
        plain.save(told, "JPEG", quality=quality, optimize=True)
        if told.tell() <= 4 * PICTURE_BYTES:
            break
    return told.getvalue()


def facts(pairs: Iterable[tuple[str, Any, Any]]) -> Html:
    """A row of numbers: what it is, the number, and a word on it."""
    told = [
        tag("div", tag("dt", name), tag("dd", number), tag("dd", word, class_="word"))
        for name, number, word in pairs
    ]
    return tag("dl", *told, class_="facts")


def prose(text: str) -> Html:
    """Text in which what stands in backticks is code."""
    return Html(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)))


def notice(*children: Any) -> Html:
    """What must not be overlooked."""
    return tag("div", *(tag("div", child) for child in children), class_="notice", role="note")


def code(text: str) -> Html:
    """A command to copy; its words stay whole where lines are broken."""
    lines = [join([tag("span", one) for one in line.split(" ")], " ") for line in text.split("\n")]
    return tag("pre", tag("code", join(lines, "\n")), tabindex="0")


def fold(summary: Any, *children: Any) -> Html:
    """Opens by a click, and on paper."""
    return tag("details", tag("summary", summary), *children)


def document(title: str, lead: Html, sections: Sequence[Section]) -> str:
    """The whole file. `lead` stands above the contents: the heading and what it is all about."""
    parts = [
        tag("section", tag("h2", one.title), one.body, id=one.anchor, aria_label=one.title)
        for one in sections
    ]
    links = [tag("a", one.short or one.title, href=f"#{one.anchor}") for one in sections]
    drawn = any('class="plot"' in one.body for one in sections)
    no_script = "The charts need JavaScript; what is in the tables does not."
    body = join(
        [
            tag("header", lead),
            tag("noscript", notice(no_script)) if drawn else None,
            tag("nav", *links, aria_label="contents") if len(links) > 1 else None,
            tag("main", *parts),
        ]
    )
    scripts = [_read("page.js")]
    if drawn:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    both = embedded({"light": LIGHT, "dark": DARK})
    palettes = tag("script", both, type="application/json", id="palettes")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_variables() + _read("page.css"))),
    ]
    ends = [palettes, *(tag("script", Html(script)) for script in scripts)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{join(head, Html(chr(10)))}\n</head>\n'
        f"<body>\n{body}\n{join(ends, Html(chr(10)))}\n</body>\n</html>\n"
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(scripts: Iterable[str]) -> str:
    """Nothing from anywhere, and no script but ours: markup that slipped in could do nothing."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def _variables() -> str:
    def told(palette: Mapping[str, Any]) -> str:
        return ";".join(f"--{k}:{v}" for k, v in palette.items() if isinstance(v, str))

    return (
        f":root{{{told(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{told(DARK)}}}}}\n"
    )
