"""A run's results as they go into this repository: text, and charts that are drawn from it alone.

    python bench/results.py                draws the charts of all folders in bench/results/ again
    python bench/results.py runs/ID NAME   takes that run's text to bench/results/NAME/, and draws
    python bench/results.py sweeps/NAME FILE   the same of a sweep by FILE.yaml

NAME is the recipe's, or the recipe's and what tells this run from others of it: cpu-seed1.

Text of a run: history.csv as the run wrote it; summary.json; confusions.csv, how many validation
images of each class were taken for which one by best.pt; about.json, where flags that only say
where things lie are left out. Of a sweep: sweep.yaml; trials.csv, what was tried and the best value
of each; about.json of its best trial. None of it shows an image of the data set.
"""

import argparse
import csv
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

import charts
import cli
from cli import Mistake
from collection import HISTORY, PastRun, is_run, is_study, read_history, read_run, trials_of
from record import HALF_KEPT, worth
from run_folder import read_json
from sweep_file import read as read_sweep
from sweep_parameters import distribution
from viz import write_picture

RESULTS = Path(__file__).parent / "results"
RUNS = sorted(path.parent for path in RESULTS.glob("*/history.csv"))
RECIPES = sorted(path.stem for path in (RESULTS.parent.parent / "recipes").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in RESULTS.parent.parent.glob("sweep*.yaml"))
PLACES = ("--data_dir", "--output_dir", "--run_id")


def recipe_of(name: str) -> str:
    return name.partition("-")[0]


def take(run: PastRun, folder: Path) -> None:
    """The run's text, as far as it may and need be published."""
    if not (run.rows and run.about and run.summary and run.predictions):
        wanted = "history.csv, about.json, summary.json and predictions.npz"
        raise Mistake(f"{run.folder} has not yet ended: it needs {wanted}")
    if run.predictions["epoch"] != run.best()[0]:
        raise Mistake(f"{run.folder}: {HALF_KEPT}")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder / HISTORY, folder / HISTORY)
    told = {key: value for key, value in run.summary.items() if key != "run_id"}
    write_json(folder / "summary.json", told)
    write_json(folder / "about.json", without_places(run.about))
    pairs = np.stack([run.predictions["true"], run.predictions["predicted"]], 1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    with (folder / "confusions.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true", "predicted", "images"])  # classes: places in about.json's list
        writer.writerows(np.column_stack([pairs, counts]).tolist())


def take_sweep(study: Path, folder: Path) -> None:
    """Every trial that measured anything, with its best epoch."""
    reached = [(run, *run.best()) for run in trials_of(study) if run.best()]
    if not reached:
        raise Mistake(f"{study}: no trial has measured val/acc")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study / "sweep.yaml", folder / "sweep.yaml")
    winner = max(reached, key=lambda one: one[2])[0]
    write_json(folder / "about.json", without_places(winner.about))
    keys = searched(read_sweep(study / "sweep.yaml"))
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "state", *keys, "epoch", "val/acc"])
        for run, epoch, acc in reached:
            writer.writerow([run.run_id, run.state, *(run.config[k] for k in keys), epoch, acc])


def searched(sweep: dict[str, Any]) -> list[str]:
    return [k for k, spec in sweep["parameters"].items() if distribution(spec) != "constant"]


def without_places(about: dict[str, Any]) -> dict[str, Any]:
    starts = []
    for start in about["starts"]:
        words, kept = iter(shlex.split(start["command"])), []
        for word in words:
            flag, equals, _ = word.partition("=")
            if flag not in PLACES:
                kept.append(word)
            elif not equals:
                next(words)  # its value
        starts.append({**start, "command": shlex.join(kept)})
    return {**about, "starts": starts}


def write_json(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=1) + "\n")


def draw(folder: Path) -> list[Path]:
    """Every chart, from the folder's text."""
    if (folder / "trials.csv").is_file():
        return [draw_sweep(folder)]
    rows, names = read_history(folder), read_json(folder / "about.json")["classes"]
    for row in rows:
        row["epoch"] = int(row["epoch"])
    counted = np.loadtxt(folder / "confusions.csv", int, delimiter=",", skiprows=1, ndmin=2)
    true, predicted = np.repeat(counted[:, :2], counted[:, 2], axis=0).T
    best = max(rows, key=worth)["epoch"]
    figures = {
        "curves": charts.curves(rows, best, folder.name),
        "classes": charts.class_accuracy(true, predicted, names),
        "confusions": charts.confusions(true, predicted, names),
    }
    if any("val/cam_energy_lift" in row for row in rows):
        figures["localisation"] = charts.localisation(rows)
    return [write_picture(one, folder / f"{name}.png") for name, one in figures.items()]


def draw_sweep(folder: Path) -> Path:
    sweep, about = read_sweep(folder / "sweep.yaml"), read_json(folder / "about.json")
    parameters = {key: "log" in distribution(sweep["parameters"][key]) for key in searched(sweep)}
    with (folder / "trials.csv").open(newline="") as file:
        figure = charts.trials(list(csv.DictReader(file)), parameters, about["validation_images"])
    return write_picture(figure, folder / "trials.png")


def main(arguments: list[str]) -> int:
    parser = cli.Parser(
        prog="python bench/results.py",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="runs/ID", help="take this run's or this study's text"
    )
    parser.add_argument("name", nargs="?", help="the folder's name in bench/results/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: bench/results)")
    options = parser.parse_args(arguments)
    if options.run and not options.name:
        raise Mistake("give the result a name: python bench/results.py runs/ID NAME")
    if options.run:
        of_sweep = is_study(options.run)
        known = SWEEPS if of_sweep else RECIPES
        if recipe_of(options.name) not in known:
            raise Mistake(f"{options.name}: a name begins with one of {', '.join(known)}")
        folders = [options.results / options.name]
        if of_sweep:
            take_sweep(options.run, folders[0])
        else:
            if not is_run(options.run):
                raise Mistake(f"{options.run}: no run's folder, nor a study's")
            take(read_run(options.run.resolve()), folders[0])
    else:
        folders = sorted(options.results.glob("*/"))
    for folder in folders:
        for path in draw(folder):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
