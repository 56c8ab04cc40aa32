"""The table of all runs: sorted and filtered in the browser, with the keys that differ."""

from collections.abc import Callable

from page import Cell, Column, Row, Section, join, table, tag
from report_certainty import MANY, images_of
from report_findings import ACCURACY, FAILED, Entry, Findings, duration, shown, word

FILTER = "filter: a word, or max_lr>0.05 accuracy>=80%"
Shows = Callable[[Entry], Cell]


def leaderboard(findings: Findings) -> Section:
    columns = [
        (head, shows)
        for head, shows in _columns(findings)
        if any(shows(one).value not in (None, "") for one in findings.entries)
    ]
    rows = [
        Row([shows(one) for _, shows in columns], one.key, _mark(findings, one))
        for one in findings.entries
    ]
    heads = [head for head, _ in columns]
    told = tag(
        "p",
        "Only the keys by which the configs differ. A heading sorts; a click on a row follows "
        "that run through all charts, in green; the filter thins out the charts, too.",
        class_="soft",
    )
    made = table(heads, rows, "leaderboard", filtered=FILTER, sortable=True)
    return Section("leaderboard", "Leaderboard", join([told, made]))


def _mark(findings: Findings, entry: Entry) -> str:
    if entry is findings.best:
        return "best"
    return "" if entry.ranked and entry.group == 0 else "aside"


def _columns(findings: Findings) -> list[tuple[Column, Shows]]:
    metric, digits = findings.metric, digits_of(findings.best)
    title = "accuracy" if metric == ACCURACY else metric
    hint = f"{metric} at its best epoch"
    made: list[tuple[Column, Shows]] = [
        (Column("run", "run", numeric=False), _run),
        (Column(title, title, hint), lambda one: Cell(shown(metric, one.value, digits), one.value)),
    ]
    if len(findings.groups) > 1:
        hint = "runs with different letters trained or validated on different images"
        column = Column("data", "data", hint, numeric=False)
        made.insert(1, (column, lambda one: Cell(letter(one.group), letter(one.group))))
    if len(findings.sizes) > 1:
        hint = "side of the images that were measured, in pixels"
        made.append((Column("pixels", "pixels", hint), _pixels))
    made += [(Column(key, key, numeric=_is_number(findings, key)), _shows(key))
             for key in findings.differing]  # fmt: skip
    if metric != ACCURACY:
        made.append(_at_best("accuracy", ACCURACY, lambda value: shown(ACCURACY, value, digits)))
    made += [
        (Column("last epoch", "last", "val/acc after the last epoch"),
         lambda one: Cell(shown(ACCURACY, one.last, digits), one.last)),
        _at_best("loss", "val/loss", lambda value: f"{value:.3f}"),
        _at_best("energy lift", "val/cam_energy_lift", signed),
        _at_best("pointing lift", "val/cam_pointing_lift", signed),
        (Column("done", "done", "whole epochs, of those that were wanted"), _epochs),
        (Column("time", "time", "seconds of all epochs, for the filter"),
         lambda one: Cell(duration(one.seconds), one.seconds)),
        (Column("images/s", "speed", "training, the median of the epochs"), _speed),
        (Column("state", "state", numeric=False), _state),
    ]  # fmt: skip
    return made


def _run(one: Entry) -> Cell:
    """A click anywhere in the row follows the run; its name does so from the keyboard, too."""
    name = tag("button", tag("bdi", one.name), type="button", aria_pressed="false")
    return Cell(name, one.name)


def _speed(one: Entry) -> Cell:
    return Cell(f"{one.images_per_s:,.0f}" if one.images_per_s else "–", one.images_per_s)


def _pixels(one: Entry) -> Cell:
    return Cell(one.pixels or "–", one.pixels)


def _shows(key: str) -> Shows:
    def show(one: Entry) -> Cell:
        value = one.run.config.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return Cell(word(value), value if number else None if value is None else str(value))

    return show


def _is_number(findings: Findings, key: str) -> bool:
    values = [one.run.config.get(key) for one in findings.entries]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _at_best(title: str, key: str, told: Callable[[float], str]) -> tuple[Column, Shows]:
    def show(one: Entry) -> Cell:
        value = one.at_best(key)
        return Cell("–" if value is None else told(value), value)

    return Column(title, title.split()[0], f"{key}, at the best epoch"), show


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _epochs(one: Entry) -> Cell:
    of = one.run.config.get("epochs")
    return Cell(f"{one.epochs}/{of}" if of and of != one.epochs else one.epochs, one.epochs)


def _state(one: Entry) -> Cell:
    return Cell(one.run.state, one.run.state, "bad" if one.run.state in FAILED else "")


def digits_of(entry: Entry | None) -> int:
    """Decimals of a percentage that its images are enough for."""
    return 2 if entry and (images_of(entry.run) or 0) >= MANY else 1


def letter(group: int) -> str:
    return chr(ord("A") + group) if group < 26 else f"A{group}"
