"""How good the offline search is: against W&B's own engine, and against random draws.

    python bench/search.py      about 6 minutes on 2 cores; prints the tables of LOG.md

The search: analytic surrogates of val/acc over max_lr (0.01..1, by its logarithm) and aug_strength
(0..2), with noise as between seeds. Regret is how far the best *true* value among all trials lies
below the optimum, in points of accuracy: 0 is perfect. The second regret is that of the trial that
looks best, noise included: the one that a user would take.

Hyperband: sweeps of learning curves, four at once, some of which fail or have gaps. After each
epoch both decide which runs end. `--record FILE` keeps some decisions of the engine for the tests.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import optuna
from tqdm import tqdm

import cli
import hyperband
import search
from bench import engine
from space import Space

PARAMETERS = {
    "max_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
    "aug_strength": {"distribution": "uniform", "min": 0.0, "max": 2.0},
}
SWEEP = {
    "method": "bayes",
    "metric": {"name": "val/acc", "goal": "maximize"},
    "parameters": PARAMETERS,
}
SEARCHES = ("random", "W&B's engine", "ours")
FIRST_SEED = 100  # what is to be chosen in search.py was chosen on the seeds below
EPOCHS = 20
RULES = (
    {"type": "hyperband", "min_iter": 3, "eta": 3, "strict": True},
    {"type": "hyperband", "min_iter": 3, "eta": 3, "strict": False},
    {"type": "hyperband", "min_iter": 1, "eta": 2},
    {"type": "hyperband", "min_iter": 2, "eta": 1.5, "strict": True},
    {"type": "hyperband", "max_iter": 20, "s": 3},
    {"type": "hyperband", "max_iter": 27, "s": 5, "eta": 3, "strict": False},
    {"type": "hyperband", "max_iter": 18, "s": 2, "eta": 2, "min_iter": 4, "strict": True},
)
started: engine.Engine | None = None  # the engine's process of each worker process


# ------------------------------------------------------------ surrogates: x is log10(max_lr) + 1,
# from -1 to 1, and a is aug_strength - 1


def bowl(x: float, a: float) -> float:
    """One broad optimum inside."""
    return 0.62 - 0.05 * (x - 0.2) ** 2 - 0.03 * (a + 0.1) ** 2


def ridge(x: float, a: float) -> float:
    """The two parameters make up for one another: a narrow ridge across."""
    along, across = 0.7 * x - a, x + 0.7 * a
    return 0.60 - 0.12 * (across - 0.25) ** 2 - 0.015 * (along + 0.3) ** 2


def cliff(x: float, a: float) -> float:
    """Better with a higher rate, up to where training diverges; the edge depends on both."""
    top = 0.60 + 0.05 * x - 0.02 * (a - 0.2) ** 2
    return 0.005 + (top - 0.005) / (1 + math.exp(min(25 * (x - 0.5 + 0.15 * a), 700)))


def basins(x: float, a: float) -> float:
    """Two hills on a plain, the better one narrow."""
    broad = math.exp(-((x + 0.5) ** 2) / 0.12 - (a - 0.4) ** 2 / 0.2)
    narrow = math.exp(-((x - 0.55) ** 2) / 0.05 - (a + 0.55) ** 2 / 0.08)
    return 0.50 + 0.08 * broad + 0.11 * narrow


def rate_only(x: float, a: float) -> float:
    """The augmentation hardly matters; a sharp peak over the rate."""
    return 0.58 - 0.09 * abs(x - 0.35) ** 1.5 - 0.002 * a


SURROGATES: dict[str, Callable[[float, float], float]] = {
    one.__name__: one for one in (bowl, ridge, cliff, basins, rate_only)
}


def truth(name: str, values: dict[str, Any]) -> float:
    return SURROGATES[name](math.log10(values["max_lr"]) + 1, values["aug_strength"] - 1)


def optimum(name: str) -> float:
    """On a grid of steps of 0.0025 either way: exact to a thousandth of a point."""
    steps = np.linspace(-1, 1, 801).tolist()
    return max(SURROGATES[name](x, a) for x in steps for a in steps)


# -------------------------------------------------------------------------------- the searches


def ours(method: str, seed: int) -> Iterator[dict[str, Any]]:
    """Suggestions; each is answered with the value that the one `--workers` before it reached."""
    study, space = optuna.create_study(direction="maximize"), Space(PARAMETERS)
    waiting = []
    while True:
        trial = search.ask(study, space, method, seed)
        waiting.append(trial)
        value = yield space.values(trial.params)
        if value is not None:
            study.tell(waiting.pop(0), value)


def theirs(seed: int) -> Iterator[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    started.seed(seed)
    while True:
        config = started.suggest(SWEEP, runs)
        runs.append({"config": config, "state": "running", "history": []})
        value = yield config
        if value is not None:
            first = next(run for run in runs if run["state"] == "running")
            first.update(state="finished", history=[value])


def regrets(job: tuple[str, str, int, argparse.Namespace]) -> tuple[str, str, int, float, float]:
    """(search, surrogate, seed, regret of the best, regret of the one that looks best)"""
    name, surrogate, seed, options = job
    suggestions = theirs(seed) if name == "W&B's engine" else ours(METHODS[name], seed)
    noise = np.random.default_rng((seed, 1)).normal(0, options.noise, options.trials)
    true, seen, value = [], [], None
    for number in range(options.trials):
        values = suggestions.send(value)
        true.append(truth(surrogate, values))
        seen.append(true[-1] + float(noise[number]))
        finished = number + 1 - options.workers  # the trial that is done before the next is asked
        value = seen[finished] if finished >= 0 else None
    best = optimum(surrogate)
    taken = true[max(range(len(seen)), key=seen.__getitem__)]
    return name, surrogate, seed, 100 * (best - max(true)), 100 * (best - taken)


METHODS = {"random": "random", "ours": "bayes"}


# ---------------------------------------------------------------------------------- hyperband


def curve(rng: np.random.Generator) -> list[float]:
    """val/acc after each epoch; rounded, so that ties occur; some runs fail, some have gaps."""
    final, pace = rng.uniform(0.1, 0.6), rng.uniform(1, 8)
    values = final * (1 - np.exp(-np.arange(1, EPOCHS + 1) / pace)) + rng.normal(0, 0.01, EPOCHS)
    values[rng.random(EPOCHS) < 0.03] = math.nan
    length = rng.integers(1, EPOCHS) if rng.random() < 0.15 else EPOCHS
    return [round(float(value), 2) for value in values[:length]]


def moments(seed: int, rule: dict[str, Any], goal: str, runs: int) -> Iterator[dict[str, Any]]:
    """A sweep with four runs at once: what there is to decide after each epoch."""
    rng = np.random.default_rng((seed, RULES.index(rule), goal == "maximize"))
    sign = 1 if goal == "maximize" else -1
    curves = {f"run{i}": [sign * value for value in curve(rng)] for i in range(runs)}
    histories: dict[str, list[float]] = {}
    states: dict[str, str] = {}
    while len(states) < runs or "running" in states.values():
        running = [name for name, state in states.items() if state == "running"]
        for name in list(curves)[len(states) : len(states) + 4 - len(running)]:
            states[name], histories[name] = "running", []
        for name in [name for name, state in states.items() if state == "running"]:
            if len(histories[name]) < len(curves[name]):
                histories[name].append(curves[name][len(histories[name])])
            else:
                states[name] = "finished" if len(curves[name]) == EPOCHS else "failed"
        stopped = yield {"rule": rule, "goal": goal, "histories": histories, "states": states}
        for name in stopped:
            states[name] = "finished"


def decisions(
    job: tuple[int, dict[str, Any], str, int],
) -> tuple[int, int, list[dict[str, Any]]]:
    """(decisions, stops, where the two differ) of one sweep."""
    made, stops, different = 0, 0, []
    for _, running, theirs_, ours_ in decided(*job):
        made += len(running)
        stops += len(theirs_)
        if ours_ != theirs_:
            different.append({"job": job, "engine": sorted(theirs_), "ours": sorted(ours_)})
    return made, stops, different


def decided(
    seed: int, rule: dict[str, Any], goal: str, runs: int
) -> Iterator[tuple[dict[str, Any], list[str], set[str], set[str]]]:
    """(moment, running, what the engine stops, what we stop) after each epoch of a sweep."""
    sweep = {**SWEEP, "metric": {"name": "val/acc", "goal": goal}, "early_terminate": rule}
    sweep_moments = moments(seed, rule, goal, runs)
    moment = next(sweep_moments, None)
    while moment is not None:
        states, histories = moment["states"], moment["histories"]
        running = [name for name, state in states.items() if state == "running"]
        listed = [{"name": n, "state": states[n], "history": histories[n]} for n in states]
        theirs_ = started.to_stop(sweep, listed)
        yield moment, running, theirs_, hyperband.to_stop(rule, goal, histories, running)
        try:
            moment = sweep_moments.send(theirs_)
        except StopIteration:
            moment = None


def record(path: Path) -> None:
    """A few moments a rule and goal, most of them with a stop, as the tests read them."""
    kept = []
    for rule in RULES:
        for goal in ("maximize", "minimize"):
            found = []
            for moment, running, stopped, _ in decided(0, rule, goal, runs=7):
                plain = {
                    name: [None if math.isnan(value) else value for value in values]
                    for name, values in moment["histories"].items()
                }
                case = {"rule": rule, "goal": goal, "histories": plain}
                found.append({**case, "running": running, "stopped": sorted(stopped)})
            with_stop = [case for case in found if case["stopped"]][-3:]
            without = [case for case in found if not case["stopped"] and case["running"]]
            kept += [json.dumps(case) for case in (*with_stop, without[len(without) // 2])]
    path.write_text("[\n" + ",\n".join(kept) + "\n]\n", encoding="utf-8")
    print(f"{path}: {len(kept)} moments")


# --------------------------------------------------------------------------------- the tables


def begin() -> None:
    """In each worker process."""
    global started
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = engine.Engine()


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def table(found: dict[tuple[str, str], list[float]], title: str) -> None:
    print(f"\n{title}\n\n| surrogate | {' | '.join(SEARCHES)} |")
    print("|---|" + "---|" * len(SEARCHES))
    for surrogate in SURROGATES:
        cells = [spread(found[name, surrogate]) for name in SEARCHES]
        print(f"| {surrogate} | {' | '.join(cells)} |")


def comparison(found: dict[tuple[str, str], list[float]], other: str) -> None:
    """Seed by seed: ours minus the other; `all` in units of random's mean regret."""
    print(f"\n| ours minus {other} | mean ± standard error | ours lower |\n|---|---|---|")
    unit = {one: statistics.mean(found["random", one]) for one in SURROGATES}
    rows = {
        one: [a - b for a, b in zip(found["ours", one], found[other, one], strict=True)]
        for one in SURROGATES
    }
    shares = {one: [value / unit[one] for value in values] for one, values in rows.items()}
    rows["all, random = 1"] = [
        statistics.mean(values) for values in zip(*shares.values(), strict=True)
    ]
    for name, values in rows.items():
        error = statistics.stdev(values) / math.sqrt(len(values))
        lower = sum(value < 0 for value in values)
        print(f"| {name} | {statistics.mean(values):+.2f} ± {error:.2f} | {lower}/{len(values)} |")


def compare_searches(pool: Any, options: argparse.Namespace) -> None:
    jobs = [
        (name, surrogate, seed, options)
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
        for surrogate in SURROGATES
        for name in reversed(SEARCHES)
    ]
    done = sorted(tqdm(pool.imap_unordered(regrets, jobs), "search", len(jobs), unit="study"))
    for column, title in ((3, "Regret of the best trial"), (4, "Regret of the trial taken")):
        found: dict[tuple[str, str], list[float]] = {}
        for row in done:
            found.setdefault((row[0], row[1]), []).append(row[column])
        table(found, f"{title}, points of accuracy, mean ± sd of {options.seeds} seeds")
        for other in ("W&B's engine", "random"):
            comparison(found, other)


def compare_hyperband(pool: Any, options: argparse.Namespace) -> None:
    jobs = [
        (seed, rule, goal, 24)
        for seed in range(options.sweeps)
        for rule in RULES
        for goal in ("maximize", "minimize")
    ]
    done = list(tqdm(pool.imap_unordered(decisions, jobs), "hyperband", len(jobs), unit="sweep"))
    made, stops = (sum(one[column] for one in done) for column in (0, 1))
    different = [difference for one in done for difference in one[2]]
    print(f"\nHyperband: {made:,} decisions in {len(jobs)} sweeps, of which {stops:,} stop a run;")
    print(f"we differ from the engine in {len(different)}")
    for difference in different[:5]:
        print(json.dumps(difference))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.004, help="sd of val/acc (default: 0.004)")
    parser.add_argument("--workers", type=int, default=1, help="trials at once (default: 1)")
    parser.add_argument("--sweeps", type=int, default=4, help="a hyperband rule and goal")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--record", type=Path, metavar="FILE", help="hyperband's, and nothing else")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes take all cores
    engine.install()
    if options.record:
        begin()
        record(options.record)
        return
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes, begin) as pool:
        if options.sweeps:
            compare_hyperband(pool, options)
        compare_searches(pool, options)
    print(f"\noptuna {optuna.__version__}; {(time.perf_counter() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    cli.run(lambda _: main())
