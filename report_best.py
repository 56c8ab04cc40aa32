"""What stands on a report's page about its best run: mistakes, classes, where it looked, and how to
make it again.
"""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

import report_charts as charts
from collection import PastRun
from page import (
    Cell,
    Column,
    Html,
    Row,
    Section,
    chart,
    code,
    fold,
    join,
    notice,
    picture,
    table,
    tag,
)
from report_certainty import points, standard_error
from report_findings import ACCURACY, Entry, Findings, shown
from report_sections import machine

PAIRS = 15  # of classes, most confused
ENDS = 10  # best and worst classes in the table, where there are many
SHEET_PX = 760  # of a picture with text in it: below that it scrolls by itself
# What a run's command may leave out: where it was, and how it was shown.
WHERE = ("output_dir", "resume", "mistakes", "workers", "device")


def mistakes(findings: Findings) -> Section | None:
    run = findings.best.run
    sheet = run.picture("mistakes.png") or run.picture("mistakes.jpg")
    panel = run.picture("gradcam.jpg") or run.picture("gradcam.png")
    parts = []
    if sheet:
        told = (
            "A mistake: the image, then, of a model that has maps, where it saw the class that it "
            "named and where it saw the right one (Grad-CAM, red is most). A box is the object. "
            "Half of them are the most confident mistakes, half a random sample."
        )
        parts += [_wrong(run), picture(sheet, "mistakes of the best run", told, SHEET_PX)]
    if panel:
        told = (
            "Validation images that were fixed before training, one a class as far as it goes: "
            "the image, with the object's box where one is known, the map of the true class, the "
            "map of the predicted one."
        )
        parts.append(picture(panel, "Grad-CAM of the best run", told, SHEET_PX))
    title = f"What {findings.best.name} gets wrong"
    return Section("mistakes", title, join(parts), "Mistakes") if parts else None


def _wrong(run: PastRun) -> Html | None:
    if run.predictions is None:
        return None
    true, predicted = run.predictions["true"], run.predictions["predicted"]
    wrong = int((true != predicted).sum())
    told = f"{wrong:,} of {len(true):,} validation images are named wrongly"
    return tag("p", f"{told} by the weights of epoch {int(run.predictions['epoch'])}.")


def classes(findings: Findings) -> Section | None:
    run = findings.best.run
    if run.predictions is None or not len(run.predictions["true"]):
        return None
    true, predicted = run.predictions["true"], run.predictions["predicted"]
    told = by_class(run, true, predicted)
    parts = [_class_chart(told)]
    if len(told) > charts.NAMED:
        parts.append(_ends(told))
    parts.append(_confusions(run, true, predicted))
    return Section("classes", "Classes and confusions", join(parts), "Classes")


def by_class(run: PastRun, true: np.ndarray, predicted: np.ndarray) -> list[tuple[str, float, int]]:
    """Name, accuracy and number of images of each class, best first."""
    images = np.bincount(true)
    right = np.bincount(true[true == predicted], minlength=len(images))
    told = [
        (run.class_name(label), right[label] / images[label], int(images[label]))
        for label in np.flatnonzero(images)
    ]
    return sorted(told, key=lambda one: -one[1])


def _class_chart(told: Sequence[tuple[str, float, int]]) -> Html:
    names, values, images = zip(*told, strict=True)
    words = [f"{value:.0%} of {n}" for value, n in zip(values, images, strict=True)]
    middle = float(np.median(images))
    error = points(ACCURACY, standard_error(float(np.mean(values)), int(middle)))
    caption = (
        f"Accuracy of each class. A class has {middle:.0f} images in the median, so that its "
        f"number is uncertain by about ± {error}."
    )
    if len(told) <= charts.NAMED:
        return chart(charts.bars(names, values, words, share=True), caption)
    return chart(charts.ranks(names, values, words), caption)


def _ends(told: Sequence[tuple[str, float, int]]) -> Html:
    """The names at both ends of many classes."""
    columns = [Column("best", numeric=False), Column(""), Column("worst", numeric=False),
               Column("")]  # fmt: skip
    rows = [
        Row([a[0], f"{a[1]:.0%}", b[0], f"{b[1]:.0%}"])
        for a, b in zip(told[:ENDS], told[: -ENDS - 1 : -1], strict=True)
    ]
    return tag("div", table(columns, rows, "the best and the worst classes"), class_="after")


def _confusions(run: PastRun, true: np.ndarray, predicted: np.ndarray) -> Html | None:
    from charts import most_confused

    pairs = most_confused(true, predicted, PAIRS)
    if not pairs:
        return None
    words = [f"{run.class_name(a)} → {run.class_name(b)}" for a, b, _ in pairs]
    counts = [n for *_, n in pairs]
    share = sum(counts) / int((true != predicted).sum())
    caption = (
        f"True class → what it was taken for, and how many images: the {len(pairs)} most frequent "
        f"pairs are {share:.0%} of all mistakes."
    )

    def labels(most: int) -> list[str]:
        """Both names of a pair have to be seen."""
        half = (most - 3) // 2
        both = ((run.class_name(a), run.class_name(b)) for a, b, _ in pairs)
        return [f"{charts.short(a, half)} → {charts.short(b, half)}" for a, b in both]

    figure = charts.bars(words, counts, [str(n) for n in counts], False, labels)
    return join([tag("h3", "Most confused"), chart(figure, caption)])


def localisation(findings: Findings) -> Section | None:
    """Where it looked, beside what looking nowhere in particular would give."""
    best = findings.best
    rows = []
    for key, name, trivial in (
        ("energy", "Share of the map's energy inside the box", "a uniform map"),
        ("pointing", "Images whose peak is inside the box", "the image's centre"),
    ):
        score, lift = (best.at_best(f"val/cam_{key}{end}") for end in ("", "_lift"))
        if score is not None and lift is not None:
            base = f"{100 * (score - lift):.1f}%"
            named = Cell(f"{name} (baseline: {trivial})", mark="long")
            rows.append(Row([named, f"{100 * score:.1f}%", base, f"{100 * lift:+.1f} points"]))
    if not rows:
        return None
    heads = [Column("", numeric=False), Column("score"), Column("baseline"), Column("lift")]
    images = best.at_best("val/cam_images")
    on = f" on {images:,.0f} validation images with a box" if images else ""
    told = (
        f"Grad-CAM of the true class{on}, {best.when}. Where objects are large or "
        "central a high number alone says little: read it against the baseline, which needs no "
        "model."
    )
    parts = [tag("p", told), table(heads, rows, "localisation")]
    return Section("localisation", "Did it look at the object?",
                   join([*parts, _looks(findings)]), "Localisation")  # fmt: skip


def _looks(findings: Findings) -> Html | None:
    entries = [one for one in charts.painted(findings) if one.at_best("val/cam_energy") is not None]
    if len(entries) < 2:
        return None
    made = [
        chart(_look(findings, entries, f"val/cam_{key}"), caption, wide=False)
        for key, caption in (
            (
                "energy",
                "A point a run; dashed: the baseline of the best run. Above it, the map is "
                "on the object.",
            ),
            ("pointing", "The same for the peak of the map; dashed: the image's centre."),
        )
    ]
    return tag("div", *made, class_="grid after")


def _look(findings: Findings, entries: Sequence[Entry], key: str) -> dict[str, Any]:
    best = findings.best
    base = (best.at_best(key) or 0) - (best.at_best(f"{key}_lift") or 0)
    layout = {
        "xaxis": charts.axis_of(findings.metric),
        "yaxis": charts.axis_of(key),
        "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": base, "y1": base,
                    "line": {"color": "$soft", "width": 1.2, "dash": "dash"}}],
        "annotations": [{"xref": "paper", "x": 1, "y": base, "showarrow": False, "xanchor": "right",
                         "yanchor": "bottom", "text": f"baseline {100 * base:.1f}%"}],
    }  # fmt: skip

    def told(one: Entry) -> str:
        score, lift = one.at_best(key), one.at_best(f"{key}_lift")
        lifted = "" if lift is None else f", {100 * lift:+.1f} points above the baseline"
        return f"{100 * score:.1f}%{lifted}<br>{shown(findings.metric, one.value)}"

    return charts.scatter(
        findings, entries, lambda one: one.value, lambda one: one.at_best(key), layout, told
    )


# How to make it again -----------------------------------------------------------------------------


def reproduce(findings: Findings, command: str) -> Section:
    parts: list[Any] = []
    if findings.best:
        parts += _again(findings.best)
    commits = {start.get("commit") for one in findings.entries for start in starts(one.run)}
    commits -= {None}
    if len(commits) > 1:
        told = ", ".join(sorted(commit[:10] for commit in commits))
        parts.append(notice(f"The runs come from {len(commits)} commits: {told}."))
    commands = [
        Row([one.name, Cell(code(command_of(one.run)), mark="long")]) for one in findings.entries
    ]
    heads = [Column("run", numeric=False), Column("command", numeric=False)]
    if len(commands) > 1:
        every = table(heads, commands, "commands of all runs")
        parts.append(tag("div", fold(f"The commands of all {len(commands)} runs", every),
                         class_="commands"))  # fmt: skip
    parts += [tag("h3", "This report"), code(command)]
    return Section("reproduce", "How to make it again", join(parts), "Reproduce")


def starts(run: PastRun) -> list[dict[str, Any]]:
    return run.about.get("starts") or []


def _again(best: Entry) -> list[Any]:
    run = best.run
    parts: list[Any] = [tag("h3", f"{best.name}, the best run")]
    told = list(dict.fromkeys(start["command"] for start in starts(run) if "command" in start))
    if told:
        parts += [tag("p", "As it was started:"), code("\n".join(told))]
        parts.append(tag("p", "The same from its config, with every key that is not the default:"))
    parts.append(code(command_of(run)))
    last = starts(run)[-1] if starts(run) else {}
    if last.get("changed"):
        parts.append(notice("Files in the checkout differed from the commit when the run started: "
                            "the commit alone may not give the same."))  # fmt: skip
    rows = [Row([name, Cell(value, mark="long")]) for name, value in _made_of(best, last) if value]
    heads = [Column("", numeric=False), Column("", numeric=False)]
    parts.append(table(heads, rows, "what the run was made of") if rows else None)
    if not last:
        parts.append(tag("p", "The run has kept no about.json: its commit and its versions are "
                         "not known.", class_="soft"))  # fmt: skip
    return parts


def _made_of(best: Entry, last: dict[str, Any]) -> list[tuple[str, Any]]:
    run = best.run
    about, versions = run.about, last.get("versions") or {}
    parameters = about.get("parameters") or run.config.get("parameters")
    changed = " and changes" if last.get("changed") else ""
    resumed = f", started {len(starts(run))} times" if len(starts(run)) > 1 else ""
    python = {"Python": last["python"]} if last.get("python") else {}
    return [
        ("commit", tag("code", f"{last['commit']}{changed}") if last.get("commit") else None),
        ("versions", ", ".join(f"{k} {v}" for k, v in {**python, **versions}.items())),
        ("split", tag("code", run.fingerprint) if run.fingerprint else None),
        ("model", f"{run.config.get('model')}, {parameters:,} parameters" if parameters else None),
        ("machine", machine(best)),
        ("arithmetic", None if "bf16" not in last else "bf16" if last["bf16"] else "float32"),
        ("begun", f"{starts(run)[0].get('time', '')}{resumed}" if starts(run) else None),
    ]


def command_of(run: PastRun) -> str:
    """`train.py` with every key of the config that is not the default, but WHERE."""
    from config import FIELDS

    told = ["python", "train.py"]
    for key, value in run.config.items():
        if key in FIELDS and key not in WHERE and value != FIELDS[key].default:
            told.append(f"--{key}={value}")
    return shlex.join(told)
