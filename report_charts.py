"""The charts of a report: one function a chart, each returns a plotly figure as a dict for
`page.chart`. The best run is the one in `$best`, always on top; the others are the stronger
in colour the better they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from report_findings import FAILED, GOING_ON, SHARES, Entry, Findings, shown, word
from report_parameters import Scale, ticks

FEW = 12  # runs, up to which the training curves of all are drawn at once
DOTS = 25  # epochs, below which each is marked
NAMED = 40  # classes, up to which each has a bar
MOST_DRAWN = 200  # runs
METRIC_NAMES = {
    "val/acc": "validation accuracy",
    "val/loss": "validation loss",
    "val/top5": "validation top-5 accuracy",
    "train/acc": "training accuracy",
    "train/loss": "training loss",
    "lr": "learning rate",
    "val/cam_energy": "energy inside the box",
    "val/cam_pointing": "peak inside the box",
}
Figure = dict[str, Any]


def plain(text: Any) -> str:
    """Text that plotly shows as it is: not as its markup, and not as a template."""
    told = str(text)
    for character in "&<>{}":
        told = told.replace(character, f"&#{ord(character)};" if character != "&" else "&amp;")
    return told


def short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def name_of(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def axis_of(metric: str, **more: Any) -> Figure:
    made = {"title": {"text": plain(name_of(metric))}, **more}
    if metric in SHARES or metric.startswith("val/cam_"):
        made["tickformat"] = ".1~%"
    return made


def colour(findings: Findings, entry: Entry) -> str:
    best = findings.best is not None and entry.key == findings.best.key
    return "$best" if best else f"$ramp {findings.shade(entry):.3f}"


def painted(findings: Findings) -> list[Entry]:
    """The runs of the charts in the order in which they are drawn: the best one last. Of very many
    only the best are: nobody could tell more lines apart.
    """
    return findings.main[:MOST_DRAWN][::-1]


def curves(findings: Findings, kind: str) -> Figure:
    """`acc` or `loss` over the epochs: validation as a line, training thin and dotted."""
    entries = painted(findings)
    data: list[Figure] = []
    visible = len(entries) <= FEW or "legendonly"
    for entry in entries:
        best = entry is findings.best
        thin = _line(findings, entry, f"train/{kind}", "training")
        if thin:
            thin["line"] |= {"width": 1.1, "dash": "dot"}
            thin["opacity"] = 0.8
            if not best:
                thin["legendgroup"] = "training"
                thin["visible"] = visible
            data.append(thin)
    switch = _switch(visible) if any("legendgroup" in one for one in data) else None
    for entry in entries:
        line = _line(findings, entry, f"val/{kind}", "validation")
        if line:
            line["line"]["width"] = 3 if entry is findings.best else 1.7
            data.append(line)
    layout = {
        "xaxis": _epochs(entries),
        "yaxis": axis_of(f"val/{kind}", title={"text": "accuracy" if kind == "acc" else "loss"}),
        "showlegend": switch is not None,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemdoubleclick": False,
        },
        "margin": {"t": 36},
    }
    if kind == "loss":
        layout["yaxis"] |= _cut([y for one in data for y in one["y"] if y is not None])
    return {"data": [*data, switch] if switch else data, "layout": layout, "height": 380}


def _switch(visible: bool | str) -> Figure:
    """In the legend: shows and hides the training curves."""
    line = {"color": "$soft", "width": 1.4, "dash": "dot"}
    nothing = {"type": "scatter", "mode": "lines", "x": [None], "y": [None], "line": line}
    return {**nothing, "name": "training", "legendgroup": "training", "visible": visible}


def _line(findings: Findings, entry: Entry, key: str, part: str) -> Figure | None:
    """A metric of one run over its epochs; where it was not finite there is a gap."""
    dotted = findings.most_rows < DOTS or len(entry.run.rows) < 2
    rows = [row for row in entry.run.rows if key in row and "epoch" in row]
    if not any(math.isfinite(row[key]) for row in rows):
        return None
    value = "%{y:.1%}" if key in SHARES else "%{y:.4g}"
    told = f"<b>{plain(short(entry.name, 60))}</b><br>epoch %{{x}}: {value} {part}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if dotted else "lines",
        "x": [row["epoch"] for row in rows],
        "y": [_rounded(row[key]) for row in rows],
        "line": {"color": colour(findings, entry)},
        "marker": {"size": 5, "color": colour(findings, entry)},
        "hovertemplate": f"{told}<extra></extra>",
        "showlegend": False,
        "meta": {"run": entry.key},
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _epochs(entries: Sequence[Entry]) -> Figure:
    last = max((row.get("epoch", 1) for one in entries for row in one.run.rows), default=1)
    made: Figure = {"title": {"text": "epoch"}}
    if last <= FEW:
        made |= {"dtick": 1, "range": [0.8, max(last, 1.5) + 0.2]}
    return made


def _cut(values: Sequence[float]) -> Figure:
    """The part of the axis that says something, where a few values are far beyond the others."""
    if not values or max(values) <= 4 * float(np.median(values)):
        return {}
    return {"range": [min(values) - 0.05 * abs(min(values)), 4 * float(np.median(values))]}


def rates(findings: Findings) -> Figure:
    """The learning rate at the end of each epoch."""
    entries = painted(findings)
    data = [line for one in entries if (line := _line(findings, one, "lr", "learning rate"))]
    for line in data:
        line["line"]["width"] = 3 if line["line"]["color"] == "$best" else 1.7
    peaks = [max(y for y in line["y"] if y is not None) for line in data]
    layout = {"xaxis": _epochs(entries), "yaxis": axis_of("lr", rangemode="tozero")}
    positive = [peak for peak in peaks if peak > 0]
    if positive and max(positive) >= 10 * min(positive):
        bounds = [math.log10(min(positive) / 30), math.log10(max(positive) * 1.5)]
        layout["yaxis"] = axis_of("lr", type="log", range=bounds, dtick=1)
    return {"data": data, "layout": layout, "height": 300}


def scatter(
    findings: Findings,
    entries: Sequence[Entry],
    x: Callable[[Entry], Any],
    y: Callable[[Entry], float | None],
    layout: Figure,
    told: Callable[[Entry], str],
) -> Figure:
    """A point a run; failed ones as a cross, those that go on as a ring. One that ended before its
    last epoch says so.
    """

    def words(one: Entry) -> str:
        state = one.run.state
        early = "" if state == "finished" else f"<br>{plain(state)}, epoch {one.epochs}"
        return f"<b>{plain(short(one.name, 60))}</b><br>{told(one)}{early}"

    there = [one for one in entries if x(one) is not None and y(one) is not None]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [x(one) for one in there],
        "y": [_rounded(y(one)) for one in there],
        "text": [words(one) for one in there],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": [colour(findings, one) for one in there],
            "size": [14 if one is findings.best else 10 for one in there],
            "symbol": [_symbol(one) for one in there],
            "line": {"width": 1.5, "color": "$paper"},
        },
        "meta": {"runs": [one.key for one in there]},
    }
    return {"data": [points], "layout": layout, "height": 320}


def _symbol(entry: Entry) -> str:
    if entry.run.state in FAILED:
        return "x"
    return "circle-open" if entry.run.state in GOING_ON else "circle"


def over_parameter(findings: Findings, scale: Scale) -> Figure:
    """The metric over one parameter."""

    def x(one: Entry) -> Any:
        value = one.run.config.get(scale.key)
        return plain(word(value)) if scale.kind == "category" else value

    axis: Figure = {"title": {"text": plain(scale.key)}}
    if scale.kind == "log":
        axis |= {"type": "log", "tickangle": 0} | _ticks_of(scale, findings, 6)
    if scale.kind == "category":
        axis |= {"type": "category"}
        axis["categoryarray"] = [plain(value) for value in scale.values]
        axis["tickvals"] = axis["categoryarray"]
        axis["ticktext"] = [plain(short(value)) for value in scale.values]
    layout = {"xaxis": axis, "yaxis": axis_of(findings.metric)}

    def told(one: Entry) -> str:
        value = plain(word(one.run.config.get(scale.key)))
        return f"{plain(scale.key)} {value}: {shown(findings.metric, one.value)}"

    figure = scatter(findings, painted(findings), x, lambda one: one.value, layout, told)
    if scale.kind == "log":
        figure["narrow"] = {"xaxis": _ticks_of(scale, findings, 4)}
    return figure


def _ticks_of(scale: Scale, findings: Findings, most: int) -> Figure:
    values = [one.run.config[scale.key] for one in findings.main if one.value is not None]
    places = ticks(scale.kind, min(values), max(values), most)
    return {"tickvals": places, "ticktext": [f"{value:.3g}" for value in places]}


def bars(
    words: Sequence[str],
    values: Sequence[float],
    told: Sequence[str],
    share: bool,
    labels: Callable[[int], Sequence[str]] | None = None,
) -> Figure:
    """A bar a line, the first one on top; `told` stands at its end. `labels` makes the words fit
    into so many letters.
    """
    labels = labels or (lambda most: [short(one, most) for one in words])
    most = 1.0 if share else max(values, default=1.0)
    data = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(words))),
        "x": [round(float(value), 4) for value in values],
        "text": [plain(one) for one in told],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [plain(one) for one in words],
        "hovertemplate": "%{hovertext}: %{text}<extra></extra>",
        "marker": {"color": "$bar"},
        "textfont": {"color": "$soft"},
    }
    layout = {
        "xaxis": {"visible": False, "range": [0, 1.16 * most], "fixedrange": True},
        "yaxis": {
            "tickvals": list(range(len(words))),
            "ticktext": [plain(one) for one in labels(40)],
            "range": [len(words) - 0.4, -0.6],
            "fixedrange": True,
            "showgrid": False,
            "ticks": "",
        },
        "bargap": 0.32,
        "margin": {"l": 8, "r": 28, "t": 4, "b": 4},
        "dragmode": False,
    }
    narrow = {"yaxis": {"ticktext": [plain(one) for one in labels(26)]}}
    narrow["xaxis"] = {"range": [0, 1.5 * most]}
    height = 30 + 25 * len(words)
    return {"data": [data], "layout": layout, "narrow": narrow, "height": height}


def ranks(names: Sequence[str], values: Sequence[float], told: Sequence[str]) -> Figure:
    """Many classes: a point a class, best first."""
    data = {
        "type": "scatter",
        "mode": "markers",
        "x": list(range(1, len(names) + 1)),
        "y": [round(float(value), 4) for value in values],
        "text": [f"<b>{plain(name)}</b><br>{plain(one)}"
                 for name, one in zip(names, told, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": "$bar", "size": 6},
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "rank of the class"}},
        "yaxis": axis_of("val/acc", title={"text": "accuracy"}, range=[-0.03, 1.03]),
    }
    return {"data": [data], "layout": layout, "height": 320}
