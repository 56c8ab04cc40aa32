"""bench/results: what a run leaves in the repository, and that the README says the same."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from past import write_run

from bench.results import RESULTS, RUNS, recipe_of, without_places
from collection import read_history
from conftest import REPO, assert_mistake, run
from study_folder import create
from sweep_file import read


def results(*arguments, to: Path):
    return run("bench/results.py", *map(str, arguments), "--results", str(to))


def test_text_and_charts_of_a_run(tmp_path):
    folder = write_run(tmp_path / "runs", "a", epochs=3, images=60)
    to = tmp_path / "results"
    to.mkdir()
    done = results(folder, "cpu-seed1", to=to)
    assert done.returncode == 0, done.stderr
    kept = to / "cpu-seed1"
    charts = {"curves.png", "classes.png", "confusions.png", "localisation.png"}
    texts = {"history.csv", "summary.json", "about.json", "confusions.csv"}
    assert {path.name for path in kept.iterdir()} == charts | texts
    assert (kept / "history.csv").read_bytes() == (folder / "history.csv").read_bytes()
    predictions = np.load(folder / "predictions.npz")
    right = (predictions["true"] == predictions["predicted"]).sum()
    counts = list(csv.DictReader((kept / "confusions.csv").open()))
    assert sum(int(row["images"]) for row in counts) == 60
    assert sum(int(row["images"]) for row in counts if row["true"] == row["predicted"]) == right

    first = {path: path.read_bytes() for path in kept.glob("*.png")}
    for path in first:
        path.unlink()
    assert results(to=to).returncode == 0  # from the text alone
    assert {path: path.read_bytes() for path in kept.glob("*.png")} == first


def test_a_run_without_boxes_has_no_chart_of_where_it_looked(tmp_path):
    folder = write_run(tmp_path / "runs", "a", epochs=1, boxes=False)
    assert results(folder, "best", to=tmp_path).returncode == 0
    assert not (tmp_path / "best" / "localisation.png").exists()


def test_text_and_chart_of_a_sweep(tmp_path):
    study = create(tmp_path / "study", read(REPO / "sweep_cpu.yaml"))
    assert_mistake(results(study.folder, "sweep_cpu", to=tmp_path), "no trial has measured val/acc")
    for number in range(3):
        given = {"max_lr": 0.02 * 5**number, "aug_strength": number / 2}
        lacks = {"epochs": 0} if number == 2 else {"reached": 0.2 + number / 10}
        run = write_run(tmp_path / "runs", f"cpu-{number}", **lacks, **given)
        job = {"run_id": run.name, "run": str(run), "parameters": given}
        study.optuna.ask().set_user_attr("job", job)
    done = results(study.folder, "sweep_cpu", to=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "sweep_cpu"
    texts = {"sweep.yaml", "trials.csv", "about.json"}
    assert {path.name for path in kept.iterdir()} == {*texts, "trials.png"}
    rows = list(csv.DictReader((kept / "trials.csv").open()))
    assert [row["run"] for row in rows] == ["cpu-0", "cpu-1"]
    assert [(row["max_lr"], row["aug_strength"]) for row in rows] == [
        ("0.02", "0.0"),
        ("0.1", "0.5"),
    ]
    for row in rows:
        history = read_history(tmp_path / "runs" / row["run"])
        best = max(history, key=lambda one: one["val/acc"])
        assert (int(row["epoch"]), float(row["val/acc"])) == (best["epoch"], best["val/acc"])
    assert_mistake(results(study.folder, "cpu", to=tmp_path), "cpu: a name begins with one of")


def test_commands_are_kept_without_the_places_of_a_machine():
    command = "python train.py --data_dir /mnt/x --max_lr=0.1 --output_dir='/a b' --run_id=r"
    told = without_places({"parameters": 1, "starts": [{"command": command, "cores": 2}]})
    kept = {"command": "python train.py --max_lr=0.1", "cores": 2}
    assert told == {"parameters": 1, "starts": [kept]}


def test_mistakes(tmp_path):
    runs, to = tmp_path / "runs", tmp_path / "results"
    to.mkdir()
    for name, lacks in (("a", {"reached": None, "epochs": 0}), ("b", {"about": False})):
        assert_mistake(results(write_run(runs, name, **lacks), "cpu", to=to), "not yet ended")
    running = write_run(runs, "c", state=None)
    assert_mistake(results(running, "cpu", to=to), "not yet ended")
    whole = write_run(runs, "d")
    assert_mistake(results(runs / "e", "cpu", to=to), "no run's folder")
    assert_mistake(results(whole, to=to), "give the result a name")
    assert_mistake(results(whole, "mine", to=to), "mine: a name begins with one of", "cpu")
    assert not list(to.iterdir())


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_what_the_readme_says_is_what_was_measured(folder):
    lines = (REPO / "README.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{recipe_of(folder.name)}` |"))
    said = re.findall(r"([\d.]+) after epoch (\d+)", row)
    measured = read_history(folder)
    assert said
    for accuracy, epoch in said:
        assert accuracy == f"{100 * measured[int(epoch) - 1]['val/acc']:.2f}"


def test_what_the_readme_says_of_the_sweep():
    rows = list(csv.DictReader((RESULTS / "sweep_cpu" / "trials.csv").open()))
    rows.sort(key=lambda row: float(row["val/acc"]))
    told = " ".join((REPO / "README.md").read_text().split())
    low, high = (
        f"{100 * float(row['val/acc']):.1f}% at {float(row['max_lr']):.2g}"
        for row in (rows[0], rows[-1])
    )
    assert f"from {low} to {high}" in told
