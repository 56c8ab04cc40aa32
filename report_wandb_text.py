"""The findings of a report in plain sentences: for a report at W&B, whose panels W&B draws itself.

Pure functions over findings; nothing here needs W&B.
"""

import re
from collections.abc import Iterable

import report_charts as charts
import report_sections as sections
from report_certainty import MANY, certainty, images_of
from report_findings import Findings, count, duration, shown, word
from report_parameters import ENOUGH, importance, scales, told_of_counted, untold, without


def headline(findings: Findings) -> list[str]:
    """The best run, and how sure that is."""
    best, metric = findings.best, findings.metric
    name = charts.name_of(metric)
    if best is None:
        return [f"No run has a value of {name} yet."]
    sure, runs = certainty(findings), len(findings.ranked)
    who = f"The best of {runs} runs is {best.name}" if runs > 1 else f"The run is {best.name}"
    value = shown(metric, best.value, 2 if (images_of(best.run) or 0) >= MANY else 1)
    spread = f" ({sure.beside(metric)})" if sure.spread else ""
    when = f" after epoch {best.epoch} of {best.epochs}" if best.epoch is not None else ""
    told = [f"{who}: {name} {value}{spread}{when}."]
    keys = [key for key in findings.searched if key in best.run.config]
    if keys:
        values = (f"{key} {word(best.run.config[key])}" for key in keys[: sections.MOST_PARAMETERS])
        told.append(f"It has {', '.join(values)}.")
    return told + sure.sentences


def notices(findings: Findings) -> list[str]:
    """What must not be overlooked."""
    told = [sections.what_is_not_over(findings), sections.sizes_differ(findings)]
    others = len(findings.entries) - len(findings.main)
    if others:
        told.append(
            f"Not all of these runs can be compared: {count(others, 'run')} of "
            f"{len(findings.entries)} had other images than the rest "
            f"({findings.groups[0]}). The panels show all of them, the text compares only those "
            "with the same images."
        )
    return [sentence for sentence in told if sentence]


def search(findings: Findings) -> list[str]:
    """What the search says of its parameters."""
    if len(findings.ranked) < 2:
        return []
    keys = [one.key for one in scales(findings)[: sections.MOST_PARAMETERS]]
    told = [_importance(findings)] if len(keys) > 1 else []
    return told + [sections.best_at(findings, key) for key in keys]


def _importance(findings: Findings) -> str:
    found = importance(findings)
    judged = told_of_counted(findings)
    if not found:
        why = untold(findings) or (
            f"Optuna's importance stands here from {ENOUGH} on. W&B's panel shows a number for "
            "any; do not trust it before"
        )
        return f"{judged} do not tell which parameter matters most: {why}.{without(findings)}"
    shares = ", ".join(f"{key} {share:.0%}" for key, share in found.items())
    return (
        f"How the effect on {charts.name_of(findings.metric)} is divided between the parameters: "
        f"{shares} (Optuna's fANOVA, {judged}; the panel has W&B's own estimate). The shares add "
        f"up to 100% also where the differences are noise.{without(findings)}"
    )


def curves(findings: Findings) -> list[str]:
    timed = [one for one in findings.entries if one.seconds]
    if not timed:
        return []
    total = duration(sum(one.seconds for one in timed))
    epochs = count(sum(one.epochs for one in timed), "epoch")
    return [f"{count(len(timed), 'run')} took {total} in all, {epochs}."]


def localisation(findings: Findings) -> list[str]:
    """Where the best run looked, beside what looking nowhere in particular would give."""
    best = findings.best
    told = []
    for key, what, trivial in (
        ("energy", "of the map's energy is inside the object's box", "a uniform map"),
        ("pointing", "of the images have the map's peak inside the box", "the image's centre"),
    ):
        score, lift = (best and best.at_best(f"val/cam_{key}{end}") for end in ("", "_lift"))
        if score is not None and lift is not None:
            told.append(
                f"{100 * score:.1f}% {what}; {trivial} would have {100 * (score - lift):.1f}%: a "
                f"lift of {100 * lift:+.1f} points."
            )
    if told:
        told.insert(0, f"Grad-CAM of the true class, {best.name} {best.when}:")
    return [" ".join(told)] if told else []


def pieces(sentence: str, ids: Iterable[str]) -> list[tuple[str, str]]:
    """A sentence as text, `code` and run ids: each piece with what it is. An id that could be a
    word or a number is text.
    """
    names = [one for one in ids if re.search(r"\d", one) and re.search("[A-Za-z]", one)]
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
    found = re.split(rf"`([^`]+)`|(?<![\w-])({pattern})(?![\w-])", sentence)
    kinds = ("text", "code", "run")
    return [(piece, kinds[place % 3]) for place, piece in enumerate(found) if piece]
