"""Parallel coordinates: a line a run, from its parameters to its value.

Drawn as lines on common axes: plotly's own needs WebGL, names no run and cannot be touched.
"""

import math
from collections.abc import Sequence

from report_charts import Figure, colour, painted, plain, short
from report_findings import SHARES, Entry, Findings, shown, word
from report_parameters import Scale, ticks


def parallel(findings: Findings, scales: Sequence[Scale]) -> Figure:
    """A line a run through all parameters to its value."""
    entries = [one for one in painted(findings) if one.value is not None]
    values = [one.value for one in entries]
    axes = [
        (scale, [scale.place(one.run.config.get(scale.key)) for one in entries]) for scale in scales
    ]
    axes.append((Scale(findings.metric, "linear", ()), values))
    places, labels = [], []
    for number, (scale, column) in enumerate(axes):
        low, high = min(column), max(column)
        if scale.kind == "category":
            low, high = -0.4, len(scale.values) - 0.6
        width = (high - low) or 1.0
        places.append([round((value - low) / width, 4) for value in column])
        labels += _labels(number, scale, low, high)
    data = [
        _through(findings, entry, [column[i] for column in places], axes)
        for i, entry in enumerate(entries)
    ]
    lines = [
        {"type": "line", "x0": i, "x1": i, "y0": -0.03, "y1": 1.03, "layer": "below",
         "line": {"color": "$line", "width": 1}} for i in range(len(axes))
    ]  # fmt: skip
    hidden = {"visible": False, "fixedrange": True}
    layout = {
        "xaxis": {**hidden, "range": [-0.2, len(axes) - 0.85]},
        "yaxis": {**hidden, "range": [-0.06, 1.2]},
        "margin": {"l": 24, "r": 24, "t": 4, "b": 4},
        "shapes": lines,
        "annotations": labels,
        "dragmode": False,
    }
    return {"data": data, "layout": layout, "height": 400}


def _through(findings: Findings, entry: Entry, y: list[float], axes: Sequence[tuple]) -> Figure:
    told = [f"<b>{plain(short(entry.name, 60))}</b>"]
    told += [f"{plain(s.key)} {plain(word(entry.run.config.get(s.key)))}" for s, _ in axes[:-1]]
    told.append(f"{plain(findings.metric)} {shown(findings.metric, entry.value)}")
    best = entry is findings.best
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(len(axes))),
        "y": y,
        "line": {"color": colour(findings, entry), "width": 3 if best else 1.5},
        "marker": {"color": colour(findings, entry), "size": 8 if best else 5},
        "opacity": 1 if best else 0.8,
        "text": "<br>".join(told),
        "hovertemplate": "%{text}<extra></extra>",
        "meta": {"run": entry.key},
    }


def _labels(number: int, scale: Scale, low: float, high: float) -> list[Figure]:
    """The name above an axis, and its numbers to the left of it."""
    if scale.kind == "category":
        marks = [(place, short(value, 12)) for place, value in enumerate(scale.values)]
        marks = marks[:: max(1, math.ceil(len(marks) / 12))]
    elif scale.kind == "log":
        found = ticks("log", 10**low, 10**high)
        marks = [(math.log10(value), f"{value:.3g}") for value in found]
    else:
        found = ticks("linear", low, high)
        share = scale.key in SHARES
        marks = [(value, f"{100 * value:.4g}%" if share else f"{value:.4g}") for value in found]
    plainly, width = {"x": number, "showarrow": False}, (high - low) or 1.0
    made = [
        {**plainly, "y": round((place - low) / width, 4), "text": plain(text), "xanchor": "right",
         "xshift": -6, "font": {"size": 11.5, "color": "$soft"}, "bgcolor": "$paper",
         "borderpad": 1} for place, text in marks
    ]  # fmt: skip
    title = {"y": 1.13, "text": f"<b>{plain(short(scale.key, 18))}</b>", "font": {"color": "$ink"}}
    return [*made, {**plainly, **title}]
