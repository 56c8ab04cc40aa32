"""How sure the best run's value is: other seeds where there are any, else the number of images.

All of it in sentences that say what was measured and what was not.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from collection import PastRun
from difference import LIKELY, mcnemar, same_images
from report_findings import ACCURACY, SHARES, SILENT, Entry, Findings, count, known_as, shown

NOISE = 2.0  # standard errors
MANY = 10_000  # images, from which on a second decimal of a percentage says something


@dataclass(frozen=True)
class Certainty:
    spread: float | None
    what: str  # it is
    sentences: list[str]
    mean: float | None = None  # around which it is; None: around the headline's number itself

    def beside(self, metric: str) -> str:
        """What stands beside the headline's number."""
        if not self.spread:
            return ""
        mean = "" if self.mean is None else f"mean {shown(metric, self.mean)} "
        return f"{mean}± {points(metric, self.spread)}, {self.what}"


def certainty(findings: Findings) -> Certainty:
    """Of the best run's value; there must be one."""
    best = findings.best
    images = images_of(best.run)
    found = _by_confirmation(findings) or _by_seeds(findings) or _by_images(findings, images)
    told = [*found.sentences, _luck(findings), _lead(findings)]
    return replace(found, sentences=[sentence for sentence in told if sentence])


def _by_confirmation(findings: Findings) -> Certainty | None:
    """What `sweep.py confirm` found: the best run again, or the best of those that were."""
    mine = findings.best.run.run_id
    told = [
        study.confirmed
        for study in findings.studies
        if study.confirmed.get("trials")
        and known_as(study.confirmed.get("metric")) == findings.metric
    ]
    told.sort(key=lambda one: all(trial.get("run_id") != mine for trial in one["trials"]))
    for confirmed in told:  # its own study first
        trials = confirmed["trials"]
        own = [one for one in trials if one.get("run_id") == mine]
        one = (own or trials)[0]
        of = "It" if own else f"Of the trials that were run again, {one['run_id']} is the best: it"
        words = _mean(findings.metric, list(one["values"].values()))
        verdict = str(confirmed.get("sentence", "")).strip()
        verdict = f"{verdict[:1].upper()}{verdict[1:]}." if verdict else ""
        sentence = f"{of} was trained again with {words}. {verdict}".strip()
        if own and trials[0] is not one:
            mean = shown(findings.metric, trials[0]["mean"])
            sentence += f" {trials[0]['run_id']} did better there: mean {mean}."
        others = count(len(one["values"]), "other seed")
        return Certainty(one.get("sd") if own else None, others, [sentence], one.get("mean"))
    return None


def _by_seeds(findings: Findings) -> Certainty | None:
    values = seeds(findings.best, findings.main)
    if len(values) < 2:
        return None
    words = _mean(findings.metric, values)
    text = (
        f"The same config was trained with {words}; the number above is the best of them. The "
        "spread between seeds is the noise that a difference between two runs has to exceed."
    )
    mean = statistics.fmean(values)
    return Certainty(statistics.stdev(values), f"{len(values)} seeds", [text], mean)


def _mean(metric: str, values: list[float]) -> str:
    told = f"{count(len(values), 'seed')}: mean {shown(metric, statistics.fmean(values))}"
    if len(values) > 1:
        told += f" ± {points(metric, statistics.stdev(values))} (standard deviation)"
    return told


def _by_images(findings: Findings, images: int | None) -> Certainty:
    best, metric = findings.best, findings.metric
    once = (
        "No other seed of this config is finished here, so how much of it is the luck of the seed "
        "is not known"
    )
    on_disk = any(study.folder for study in findings.studies)
    ask = "; `python sweep.py confirm` would tell." if on_disk else "."
    if metric not in ("val/acc", "val/top5") or not images:
        return Certainty(None, "", [once + ask])
    error = standard_error(best.value, images)
    text = (
        f"Measured on {images:,} validation images, an accuracy like this has a standard error of "
        f"{points(metric, error)}: other images of the same kind would move it by about that much. "
    )
    return Certainty(error, f"standard error, {images:,} images", [text + once + ask])


def _luck(findings: Findings) -> str:
    """What was chosen by looking at the very images that the number is measured on."""
    best, tried = findings.best, len(findings.ranked)
    chosen = []
    if best.epochs > 1 and best.epoch is not None:
        chosen.append(f"the best of {best.epochs} epochs")
    if tried > 1:
        chosen.append(f"the best of {tried} runs")
    if not chosen:
        return ""
    both = "both flatter it" if len(chosen) > 1 else "that flatters it"
    told = f"It is {' of '.join(chosen)}, chosen on these same images; {both}."
    if findings.metric == ACCURACY and best.last is not None and len(best.run.rows) > 1:
        ended = "last epoch so far" if best.run.state == "running" else "last epoch"
        same = " as well" if best.last == best.value else ""
        told += f" Its {ended}, which nobody chose, has {shown(ACCURACY, best.last)}{same}."
    return told


def _lead(findings: Findings) -> str:
    """The next one, and whether the images can tell the two apart."""
    best = findings.best
    others = (
        one for one in findings.ranked if _but_seed(one.run.config) != _but_seed(best.run.config)
    )
    second = next(others, None)
    if second is None:
        return ""
    lead = abs(best.value - second.value)
    told = f"The next, {second.name}, is {points(findings.metric, lead)} behind"
    if not lead:
        return f"The next, {second.name}, has the same value."
    values = seeds(best, findings.main)
    if len(values) > 1 and lead < NOISE * math.sqrt(2) * statistics.stdev(values):
        return f"{told}: no more than what another seed does."
    p = paired_p(best.run, second.run) if findings.metric == ACCURACY else None
    if p is None:
        return f"{told}."
    also = f" (exact McNemar test, p = {p:.2g})"
    if p >= LIKELY:
        return f"{told}: on these images the two cannot be told apart{also}."
    return f"{told}: more than the choice of the images explains{also}."


def points(metric: str, difference: float) -> str:
    if metric not in SHARES:
        return f"{difference:.2g}"
    return f"{100 * difference:.{1 if difference >= 0.01 else 2}f} points"


def seeds(best: Entry, entries: Iterable[Entry]) -> list[float]:
    """The best value of each seed of its config: of the best run, and of those that finished."""
    wanted = _but_seed(best.run.config)
    found: dict[Any, float] = {best.run.config.get("seed"): best.value}
    for one in entries:  # best first
        there = one.value is not None and one.run.state == "finished"
        if there and _but_seed(one.run.config) == wanted:
            found.setdefault(one.run.config.get("seed"), one.value)
    return list(found.values())


def _but_seed(config: dict[str, Any]) -> dict[str, str]:
    left_out = (*SILENT, "seed", "workers")
    return {key: repr(value) for key, value in config.items() if key not in left_out}


def standard_error(share: float, images: int) -> float:
    """Of a share of so many images, each right or wrong; two of each are added (Agresti and
    Coull), so that all of a few right is not taken for certain.
    """
    share = (share * images + 2) / (images + 4)
    return math.sqrt(share * (1 - share) / (images + 4))


def images_of(run: PastRun) -> int | None:
    """How many images validate it."""
    told = run.about.get("validation_images")
    if told is None and run.predictions is not None:
        told = len(run.predictions["true"])
    return told or None


def paired_p(one: PastRun, two: PastRun) -> float | None:
    """How often the choice of the images alone makes such a difference (exact McNemar test)."""
    a, b = one.predictions, two.predictions
    if a is None or b is None or not same_images(a, b) or len(a["true"]) < 2:
        return None
    right = [p["true"] == p["predicted"] for p in (a, b)]
    return mcnemar(int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum()))
