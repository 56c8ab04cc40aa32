"""What stands on a report's page about all of its runs: headline, leaderboard, parameters, curves,
cost. Findings in, HTML out; what is told of the best run alone is in report_best.py.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import report_charts as charts
from page import Html, Section, chart, facts, join, notice, prose, tag
from report_certainty import certainty, points
from report_findings import (
    ACCURACY,
    FAILED,
    GOING_ON,
    Entry,
    Findings,
    count,
    duration,
    known_as,
    shown,
    word,
)
from report_leaderboard import digits_of, letter
from report_parallel import parallel
from report_parameters import ENOUGH, importance, scales, told_of_counted, untold, without

ENDED = ("finished", "stopped")  # as they should
QUARTER = 8  # runs, from which on the best quarter of them says something
MOST_PARAMETERS = 12  # with a chart of their own
AXIS_PX = 104  # of the parallel coordinates on a phone


def headline(findings: Findings, title: str, when: str) -> Html:
    """The heading, the best run, how sure that is, and what must not be overlooked."""
    about = [_data(findings), when.replace(" ", "\u00a0")]
    top = [tag("h1", title), tag("p", " · ".join(filter(None, about)), class_="soft")]
    best = findings.best
    if best is None:
        nothing = f"No run has a value of {charts.name_of(findings.metric)} yet."
        return join([*top, tag("p", nothing, class_="over"), *notices(findings)])
    sure = certainty(findings)
    runs = len(findings.ranked)
    over = f"Best of {runs} runs: " if runs > 1 else "The run "
    number = shown(findings.metric, best.value, digits_of(best))
    words = [charts.name_of(findings.metric), sure.beside(findings.metric)]
    chips = [
        tag("li", f"{key} ", tag("b", word(best.run.config.get(key))))
        for key in findings.differing
        if key in best.run.config
    ]
    parts = [
        tag("p", over, tag("b", best.name), class_="over"),
        tag("p", tag("b", number), tag("span", " · ".join(filter(None, words))), class_="hero"),
        tag("ul", *chips, class_="chips") if chips else None,
        tag("div", *(tag("p", prose(sentence)) for sentence in sure.sentences), class_="lead"),
        *notices(findings),
        facts(_facts(best)),
    ]
    return join([*top, *parts])


def _data(findings: Findings) -> str:
    best = findings.best or (findings.main[0] if findings.main else None)
    if best is None:
        return ""
    about, parts = best.run.about, []
    if about.get("classes"):
        parts.append(count(len(about["classes"]), "class", "classes"))
    if about.get("training_images") and about.get("validation_images"):
        train, val = about["training_images"], about["validation_images"]
        parts.append(f"{train:,} training and {val:,} validation images")
    if findings.groups[0].fingerprint:
        parts.append(f"split {findings.groups[0].fingerprint}")
    return " · ".join(parts)


def _facts(best: Entry) -> list[tuple[str, Any, Any]]:
    lift = best.at_best("val/cam_energy_lift")
    told = [
        ("Last epoch", shown(ACCURACY, best.last), f"accuracy after {count(best.epochs, 'epoch')}"),
        ("Loss", shown("val/loss", best.at_best("val/loss")), f"validation, {best.when}"),
        ("Looked at the object", lift if lift is None else f"{100 * lift:+.1f}",
         "points of the map's energy inside the box, above a map that looks everywhere"),
        ("Training", duration(best.seconds), _speed(best)),
    ]  # fmt: skip
    return [one for one in told if one[1] not in (None, "–")]


def _speed(entry: Entry) -> str:
    speed = entry.images_per_s
    return f"{speed:,.0f} images a second" if speed is not None else ""


def notices(findings: Findings) -> list[Html]:
    told = []
    if len(findings.groups) > 1:
        told.append(_other_data(findings))
    aims = {(known_as(study.metric), study.goal) for study in findings.studies}
    if len(aims) > 1:
        many = ", ".join(sorted(f"{metric} ({goal})" for metric, goal in aims))
        told.append([f"The studies search for different things: {many}. Here all runs are "
                     f"compared by {findings.metric}."])  # fmt: skip
    if differ := sizes_differ(findings):
        told.append([differ])
    found = [notice(*lines) for lines in told]
    drawn, there = len(charts.painted(findings)), len(findings.main)
    many = f"The charts draw the best {drawn} of {there:,} runs." if drawn < there else ""
    rest = " ".join(filter(None, (what_is_not_over(findings), many)))
    return [*found, tag("p", rest, class_="soft")] if rest else found


def _other_data(findings: Findings) -> list[Any]:
    lines: list[Any] = [
        tag("strong", "Not all of these runs can be compared. "),
    ]
    sizes = Counter(one.group for one in findings.entries)
    parts = []
    for place, data in enumerate(findings.groups):
        where = "in the headline and in the charts" if place == 0 else "in the leaderboard only"
        parts.append(tag("li", f"{letter(place)}: {data}, {count(sizes[place], 'run')}, {where}"))
    text = "They trained or validated on different images, and so may differ by these alone:"
    return [join([*lines, text, tag("ul", *parts)])]


def sizes_differ(findings: Findings) -> str:
    """Nothing where all were measured at the same size."""
    if len(findings.sizes) < 2:
        return ""
    many = ", ".join(
        f"{count(runs, 'run')} at {f'{size} px' if size else 'a size that is not known'}"
        for size, runs in findings.sizes.items()
    )
    told = f"The runs' images were of different sizes when they were measured: {many}."
    if any(one.grew for one in findings.ranked):
        told += " A run whose images were to grow, and that ended before, is told by what it had."
    return told


def what_is_not_over(findings: Findings) -> str:
    """What the states of the runs mean for their numbers."""
    states = [one.run.state for one in findings.entries]
    failed = sum(state in FAILED for state in states)
    going = sum(state in GOING_ON for state in states)
    told = []
    if failed:
        told.append(f"{count(failed, 'run')} failed: shown, but without a place")
    if going:
        told.append(f"{count(going, 'run')} still going on: the numbers are those so far")
    early = Counter(state for state in states if state not in (*FAILED, *GOING_ON, *ENDED))
    if early:
        many = ", ".join(f"{number} {state}" for state, number in early.items())
        told.append(f"{count(early.total(), 'run')} ended early ({many})")
    stopped = states.count("stopped")
    if stopped:
        many = f"{stopped} of {count(len(states), 'run')}"
        told.append(f"{many} stopped before the last epoch, as the search or somebody wanted; "
                    "what they had by then counts")  # fmt: skip
    return f"{'; '.join(told)}." if told else ""


# What the parameters did --------------------------------------------------------------------------


def parameters(findings: Findings) -> Section | None:
    """Importance, parallel coordinates, and the metric over each parameter that was searched."""
    found = scales(findings)
    if not found or len(findings.ranked) < 2:
        return None
    metric = charts.name_of(findings.metric)
    through = (
        f"One line a run, from its parameters to its {metric}; the stronger the blue, the better. "
        "The leaderboard's filter picks lines."
    )
    parts = [_importance(findings) if len(found) > 1 else None]
    if len(found) > 1:
        least = AXIS_PX * (min(len(found), MOST_PARAMETERS) + 1)
        figure = parallel(findings, found[:MOST_PARAMETERS])
        parts.append(chart(figure, _best_in(findings, through), least=least))
    over = [
        chart(charts.over_parameter(findings, one), best_at(findings, one.key), wide=False)
        for one in found[:MOST_PARAMETERS]
    ]
    parts.append(tag("div", *over, class_="grid"))
    if len(found) > MOST_PARAMETERS:
        rest = ", ".join(one.key for one in found[MOST_PARAMETERS:])
        parts.append(tag("p", f"Without a chart of their own: {rest}.", class_="soft"))
    return Section("parameters", "What made the difference", join(parts), "Parameters")


def _best_in(findings: Findings, text: str) -> Html:
    swatch = tag("span", class_="swatch", style="background:var(--best)")
    named = tag("span", swatch, findings.best.name, class_="together")
    return join([text, " ", named, ", the best run."])


def _importance(findings: Findings) -> Html:
    judged = told_of_counted(findings)
    found = importance(findings)
    if not found:
        why = untold(findings) or (
            f"Optuna's importance is shown from {ENOUGH} runs on. In a trial on a function that we "
            "know, it named the right parameter in 60% of cases with 4 runs, in 93% with 10"
        )
        text = f"{judged} do not tell which parameter matters most: {why}.{without(findings)}"
        return tag("p", text, class_="soft")
    words, values = list(found), list(found.values())
    told = [f"{value:.0%}" for value in values]
    caption = (
        f"How the effect on {charts.name_of(findings.metric)} that Optuna's fANOVA finds in "
        f"{judged} is divided between the parameters. The shares add up to 100% also "
        f"where the differences are noise. The direction is in the charts below.{without(findings)}"
    )
    return chart(charts.bars(words, values, told, share=True), caption)


def best_at(findings: Findings, key: str) -> str:
    """What one sees: where the best ones lie."""
    best = findings.best
    told = f"The best run has {key} {word(best.run.config.get(key))}."
    ranked = findings.ranked
    values = [one.run.config.get(key) for one in ranked[: max(len(ranked) // 4, 1)]]
    if len(ranked) < QUARTER or not all(isinstance(v, float) for v in values):
        return told
    span = f"{word(min(values))} and {word(max(values))}"
    return f"{told} The best quarter of the runs lie between {span}."


# Curves and cost ----------------------------------------------------------------------------------


def curves(findings: Findings) -> Section | None:
    accuracy, loss = charts.curves(findings, "acc"), charts.curves(findings, "loss")
    rates = charts.rates(findings)
    parts = []
    if accuracy["data"]:
        parts.append(chart(accuracy, _best_in(findings, _learned(findings)) if findings.best
                           else _learned(findings)))  # fmt: skip
    if loss["data"]:
        told = "Loss after each epoch, drawn as above."
        if "range" in loss["layout"]["yaxis"]:
            told += " A few values far beyond the others are cut off: a double click shows them."
        parts.append(chart(loss, told))
    if rates["data"]:
        told = "The learning rate at the end of each epoch."
        if rates["layout"]["yaxis"].get("type") == "log":
            told += " The axis is logarithmic, and cut where one cycle fades away."
        parts.append(chart(rates, told))
    return Section("curves", "Learning curves", join(parts), "Curves") if parts else None


def _learned(findings: Findings) -> str:
    told = (
        "Accuracy after each epoch: validation as lines, training thin and dotted (measured on "
        "augmented images, while the weights were changing). Hovering names the run; a click on "
        "“training” shows or hides that."
    )
    best = findings.best
    train, val = (best.at_best(f"{part}/acc") if best else None for part in ("train", "val"))
    if train is not None and val is not None:
        side = "above" if train > val else "below"
        told += f" Training is {points(ACCURACY, abs(train - val))} {side} validation at the best."
    return told


def cost(findings: Findings) -> Section | None:
    timed = [one for one in findings.entries if one.seconds]
    if not timed:
        return None
    total = duration(sum(one.seconds for one in timed))
    epochs = count(sum(one.epochs for one in timed), "epoch")
    told = f"{count(len(timed), 'run')} took {total} in all, {epochs}"
    speeds = [one.images_per_s for one in timed if one.images_per_s]
    if speeds:
        told += f"; {statistics.median(speeds):,.0f} training images a second in the median run"
    devices = Counter(filter(None, map(machine, timed)))
    if devices:
        told += f" ({'; '.join(name for name, _ in devices.most_common(3))})"
    parts: list[Html] = [tag("p", told + ".")]
    there = [one for one in charts.painted(findings) if one.value is not None and one.seconds]
    if len(there) > 1:
        told = "Each run's best value over the time of all its epochs, validation included."
        parts.append(chart(_over_time(findings, there), told))
    return Section("cost", "Cost", join(parts))


def _over_time(findings: Findings, entries: Sequence[Entry]) -> dict[str, Any]:
    longest = max(one.seconds for one in entries)
    unit, size = next((u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1))
                      if longest >= 2 * s or s == 1)  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": charts.axis_of(findings.metric),
    }

    def told(one: Entry) -> str:
        return f"{shown(findings.metric, one.value)} in {duration(one.seconds)}, {_speed(one)}"

    return charts.scatter(
        findings, entries, lambda one: one.seconds / size, lambda one: one.value, layout, told
    )


def machine(entry: Entry) -> str:
    starts = entry.run.about.get("starts") or [{}]
    last = starts[-1]
    told = str(last.get("device") or "")
    if last.get("processor") and not told.startswith("cuda"):
        cores = f", {count(last['cores'], 'core')}" if last.get("cores") else ""
        told = f"{last['processor']}{cores}"
    return f"{told}, {last['processes']} processes" if last.get("processes") else told
