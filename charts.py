"""Curves and bars with matplotlib: one function a picture, each returns a figure."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

TRAIN, VAL, MARK = "#d97706", "#1d4ed8", "#6b7280"  # orange, blue, grey: told apart by everyone
NAMED = 20  # bars with a name, where there are too many
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}


def curves(rows: Sequence[dict[str, Any]], best_epoch: int, title: str) -> Figure:
    """Accuracy, loss, learning rate and, where it was measured, localisation, over the epochs."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.6))
        figure.suptitle(title)
        axes = figure.subplots(2, 2)
        epochs = [row["epoch"] for row in rows]

        def line(axis, key: str, colour: str, label: str) -> None:
            values = [row.get(key, np.nan) for row in rows]
            axis.plot(
                epochs,
                values,
                color=colour,
                label=label,
                marker="o" if len(rows) < 25 else None,
                ms=4,
            )

        for axis, key, name in ((axes[0, 0], "acc", "accuracy"), (axes[0, 1], "loss", "loss")):
            line(axis, f"train/{key}", TRAIN, "training")
            line(axis, f"val/{key}", VAL, "validation")
            axis.set_ylabel(name)
        axes[0, 0].set_ylim(0, 1)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
        line(axes[1, 0], "lr", MARK, "")
        axes[1, 0].set_ylabel("learning rate at the epoch's end")
        axes[1, 0].set_ylim(bottom=0)
        if any("val/cam_energy_lift" in row for row in rows):
            line(axes[1, 1], "val/cam_energy_lift", VAL, "energy in the box")
            line(axes[1, 1], "val/cam_pointing_lift", TRAIN, "peak in the box")
            axes[1, 1].axhline(0, color=MARK, lw=0.8)
            axes[1, 1].set_ylabel("localisation above the trivial")
        else:
            axes[1, 1].axis("off")
        for axis in axes.flat:
            if not axis.axison:
                continue
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            if len(rows) == 1:
                axis.set_xlim(0, 2)
            axis.axvline(best_epoch, color=MARK, ls=":", lw=1.2)
            if axis.get_legend_handles_labels()[0] and axis is not axes[1, 0]:
                axis.legend(loc="best")
            _mark_sizes(axis, rows)
        axes[0, 0].set_title(
            f"best epoch {best_epoch}: {rows[best_epoch - 1]['val/acc']:.2%}",
            loc="left",
            fontsize=10,
            color=MARK,
            pad=18 if "pixels" in rows[0] else None,  # above the sizes
        )
    return figure


def _mark_sizes(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Where the images grew, with their sizes above the upper edge."""
    before = None
    for row in rows:
        pixels = row.get("pixels")
        if pixels != before:
            start = row["epoch"] - 0.5
            if before:
                axis.axvline(start, color=MARK, lw=0.6)
            axis.annotate(
                f"{pixels:.0f} px",
                (max(start, axis.get_xlim()[0]), 1.01),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=MARK,
            )
        before = pixels


def localisation(rows: Sequence[dict[str, Any]]) -> Figure:
    """Where it looked, epoch by epoch, beside what needs no model."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8))
        for axis, key, name, trivial in zip(
            figure.subplots(1, 2),
            ("val/cam_energy", "val/cam_pointing"),
            ("share of the map's energy inside the box", "images whose peak is inside the box"),
            ("a uniform map", "the image's centre"),
            strict=True,
        ):
            measured = [row for row in rows if key in row]
            epochs = [row["epoch"] for row in measured]
            scores = [row[key] for row in measured]
            baseline = scores[-1] - measured[-1][f"{key}_lift"]  # of the images: always the same
            axis.plot(epochs, scores, color=VAL, marker="o", ms=4, label="Grad-CAM, true class")
            axis.axhline(baseline, color=MARK, ls="--", label=trivial)
            axis.set_title(name, loc="left", fontsize=10)
            axis.set_xlabel("epoch")
            axis.set_ylim(0, 1)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(loc="lower right")
    return figure


def class_accuracy(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Every class as a bar, sorted; of many classes the best and the worst 20 with their names."""
    count = np.bincount(true, minlength=len(names))
    right = np.bincount(true[true == predicted], minlength=len(names))
    there = np.flatnonzero(count)
    order = there[np.argsort(right[there] / count[there], kind="stable")[::-1]]
    values = right[order] / count[order]
    words = [short(names[i]) for i in order]
    with matplotlib.rc_context(STYLE):
        if len(order) <= 2 * NAMED:
            figure = Figure(figsize=(8, 1.4 + 0.24 * len(order)))
            axis = figure.subplots()
            _bars(axis, words, values, "accuracy")
            axis.set_title(f"accuracy of each class; mean {values.mean():.1%}", loc="left")
            return figure
        figure = Figure(figsize=(12, 6.4))
        whole, best, worst = figure.subplots(1, 3, width_ratios=(0.8, 1, 1))
        whole.fill_betweenx(np.arange(len(values)), values, color=VAL, alpha=0.7, lw=0)
        whole.set_ylim(len(values), 0)
        whole.set_xlim(0, 1)
        whole.set_xlabel("accuracy")
        whole.xaxis.set_major_formatter(PercentFormatter(1))
        whole.set_ylabel("rank of the class")
        whole.set_title(f"all {len(values)} classes; mean {values.mean():.1%}", loc="left")
        for axis, part, name in (
            (best, slice(NAMED), "best"),
            (worst, slice(-NAMED, None), "worst"),
        ):
            _bars(axis, words[part], values[part], "accuracy")
            axis.set_title(f"the {name} {NAMED}", loc="left")
    return figure


def confusions(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """The 20 pairs that were confused most often, with their counts."""
    pairs = most_confused(true, predicted, NAMED)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.6 + 0.26 * max(len(pairs), 1)))
        axis = figure.subplots()
        words = [f"{short(names[a])} → {short(names[b])}" for a, b, _ in pairs]
        counts = np.array([n for *_, n in pairs])
        _bars(axis, words, counts, "images", "{:.0f}")
        axis.set_title("most confused: true → predicted", loc="left")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def most_confused(true: np.ndarray, predicted: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(true, predicted, number of images), the most frequent first; ties by class."""
    wrong = true != predicted
    pairs, counts = np.unique(np.stack([true, predicted], 1)[wrong], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(a), int(b), int(n)) for (a, b), n in zip(pairs[order], counts[order], strict=True)]


def learning_rates(
    rates: Sequence[float], losses: Sequence[float], accs: Sequence[float], suggestion: float | None
) -> Figure:
    """Of a range test: loss and accuracy over the learning rate, both smoothed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 6))
        above, below = figure.subplots(2, 1, sharex=True)
        for axis, values, colour, name in (
            (above, losses, VAL, "training loss, smoothed"),
            (below, accs, TRAIN, "training accuracy, smoothed"),
        ):
            axis.plot(rates, values, color=colour)
            axis.set_ylabel(name)
            axis.set_xscale("log")
            if suggestion:
                axis.axvline(suggestion, color=MARK, ls="--", lw=1.2)
        below.set_xlabel("learning rate")
        found = f"suggested max_lr {suggestion:.3g}" if suggestion else "no suggestion"
        above.set_title(found, loc="left", color=MARK, fontsize=10)
    return figure


def trials(rows: Sequence[dict[str, Any]], parameters: dict[str, bool], images: int) -> Figure:
    """What a sweep's trials reached, over each parameter (whether it was drawn by its logarithm),
    with the standard errors of so many images.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4))
        axes = figure.subplots(1, len(parameters), sharey=True, squeeze=False)[0]
        accs = np.array([float(row["val/acc"]) for row in rows])
        errors = np.sqrt(accs * (1 - accs) / images)
        best = accs.argmax()
        for axis, (key, logarithmic) in zip(axes, parameters.items(), strict=True):
            tried = [float(row[key]) for row in rows]
            axis.errorbar(tried, accs, errors, fmt="o", color=VAL, ecolor=MARK, ms=6, lw=1)
            axis.plot(tried[best], accs[best], "o", color=TRAIN, ms=9, zorder=3, label="the best")
            axis.set_xscale("log" if logarithmic else "linear")
            axis.set_xlabel(key)
        axes[0].set_ylabel("validation accuracy")
        axes[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes[0].legend(loc="upper left")
    return figure


def _bars(axis, words: Sequence[str], values: np.ndarray, unit: str, written: str = "{:.0%}"):
    places = np.arange(len(words))
    axis.barh(places, values, color=VAL, alpha=0.8, height=0.7)
    axis.set_yticks(places, words)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_ylim(len(words) - 0.4, -0.6)
    top = 1 if unit == "accuracy" else max(values, default=1)
    axis.set_xlim(0, top * 1.08)
    for place, value in zip(places, values, strict=True):
        axis.text(value + 0.01 * top, place, written.format(value), va="center", fontsize=8)
    axis.set_xlabel(unit)
    if unit == "accuracy":
        axis.xaxis.set_major_formatter(PercentFormatter(1))


def short(name: str, most: int = 24) -> str:
    """A name that fits beside a bar; matplotlib takes pairs of $ for a formula."""
    name = name.replace("$", r"\$")
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
