"""How sure the best run's value is: other seeds where there are any, else the number of images.

All of it in sentences that say what was measured and what was not.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from collection import PastRun
from difference import LIKELY, mcnemar, same_images, told_p
from report_findings import (
    ACCURACY,
    FAILED,
    SHARES,
    SILENT,
    Entry,
    Findings,
    count,
    known_as,
    shown,
)

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
    found = _by_confirmation(findings) or _by_seeds(findings) or _by_images(findings)
    told = [*found.sentences, *_others_confirmed(findings), _luck(findings), _lead(findings)]
    return replace(found, sentences=[sentence for sentence in told if sentence])


def _by_confirmation(findings: Findings) -> Certainty | None:
    """The best run again, by `sweep.py confirm`; None where no other seed of it has a value."""
    for confirmed in _confirmed(findings):
        best, own = confirmed["trials"][0], _own(findings, confirmed)
        if own is None or not own["values"]:
            continue
        sentence = f"It was trained again with {_mean(findings.metric, own)}. {_verdict(confirmed)}"
        if own is not best:
            mean = shown(findings.metric, best["mean"])
            sentence += f" {best['run_id']} did better there: mean {mean}."
        others = count(len(own["values"]), "other seed")
        return Certainty(own.get("sd"), others, [sentence.strip()], own.get("mean"))
    return None


def _others_confirmed(findings: Findings) -> list[str]:
    """What was run again where it is not the best run, or the best run failed."""
    told = []
    for confirmed in _confirmed(findings):
        best, own = confirmed["trials"][0], _own(findings, confirmed)
        if own and own["values"]:
            return []
        if own and own["failed"]:
            others = count(own["failed"], "other seed")
            told.append(f"It was trained again with {others}, and failed.")
        if best["values"]:
            words = f"it was trained again with {_mean(findings.metric, best)}"
            who = f"Of the trials of {confirmed['study']} that were run again, {best['run_id']}"
            told.append(f"{who} is the best: {words}. {_verdict(confirmed)}".strip())
    return told


def _confirmed(findings: Findings) -> list[dict[str, Any]]:
    """What `sweep.py confirm` found of runs that can be compared with the best one."""
    there = {one.run.run_id for one in findings.main}
    found = []
    for study in findings.studies:
        told = study.confirmed
        trials = [one for one in told.get("trials", ()) if one.get("run_id") in there]
        if trials and known_as(told.get("metric")) == findings.metric:
            found.append({**told, "trials": trials, "study": study.name})
    return found


def _own(findings: Findings, confirmed: dict[str, Any]) -> dict[str, Any] | None:
    mine = findings.best.run.run_id
    return next((one for one in confirmed["trials"] if one["run_id"] == mine), None)


def _verdict(confirmed: dict[str, Any]) -> str:
    told = str(confirmed.get("sentence", "")).strip()
    return f"{told[:1].upper()}{told[1:]}." if told else ""


def _by_seeds(findings: Findings) -> Certainty | None:
    values = seeds(findings.best, findings.main)
    if len(values) < 2:
        return None
    words = _seeds(findings.metric, values, failed_seeds(findings.best, findings.main))
    text = (
        f"The same config was trained with {words}; the number above is the best of them. The "
        "spread between seeds is the noise that a difference between two runs has to exceed."
    )
    mean = statistics.fmean(values)
    return Certainty(statistics.stdev(values), f"{len(values)} seeds", [text], mean)


def _mean(metric: str, trial: dict[str, Any]) -> str:
    return _seeds(metric, list(trial["values"].values()), trial.get("failed", 0))


def _seeds(metric: str, values: list[float], failed: int) -> str:
    told = f"{count(len(values), 'seed')}: mean {shown(metric, statistics.fmean(values))}"
    if len(values) > 1:
        told += f" ± {points(metric, statistics.stdev(values))} (standard deviation)"
    return f"{told}; {count(failed, 'other seed')} failed" if failed else told


def _by_images(findings: Findings) -> Certainty:
    best, metric, images = findings.best, findings.metric, images_of(findings.best.run)
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
    if best.candidates > 1 and best.epoch is not None:
        grown = " at the largest size" if best.candidates < best.epochs else ""
        chosen.append(f"the best of {best.candidates} epochs{grown}")
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
    also = f" (exact McNemar test, {told_p(p)})"
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


def failed_seeds(best: Entry, entries: Iterable[Entry]) -> int:
    """Seeds of its config of which every run failed."""
    wanted = _but_seed(best.run.config)
    alike = [one.run for one in entries if _but_seed(one.run.config) == wanted]
    done = {run.config.get("seed") for run in alike if run.state not in FAILED}
    return len({run.config.get("seed") for run in alike if run.state in FAILED} - done)


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
