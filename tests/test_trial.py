"""A trial's command and output, and what is told of a study: by tables."""

import dataclasses
import errno
import os
import sys
import time
from pathlib import Path

import pytest
from past import write_run

from cli import Failure
from collection import best, read_history
from confirmation import Confirmation, Confirmed, report, verdict
from conftest import REPO
from driver import Driver, Search
from run_folder import is_in_use
from standings import Board, in_words, seconds_left
from study import End, Standing, Study
from study_folder import create
from sweep_file import read
from trial import Job, command_of, last_lines

GIVEN = {"max_lr": 0.1, "amp": False, "flip": True, "model": "small"}
HEAD = ["/usr/bin/env", sys.executable, "train.py"]


@pytest.mark.parametrize(
    ("command", "called"),
    [
        (None, [*HEAD, "--max_lr=0.1", "--amp=False", "--flip=True", "--model=small"]),
        (["${program}", "${args_no_boolean_flags}"],
         ["train.py", "--max_lr=0.1", "--flip", "--model=small"]),
        (["${args_no_hyphens}"], ["max_lr=0.1", "amp=False", "flip=True", "model=small"]),
        (["${args_no_equals}"],
         ["--max_lr", "0.1", "--amp", "False", "--flip", "True", "--model", "small"]),
        (["a", "${args_json}"],
         ["a", '{"max_lr": 0.1, "amp": false, "flip": true, "model": "small"}']),
        (["--home=${envvar:TINYSWEEP_HOME}", 3], ["--home=/there", "3"]),
    ],
)  # fmt: skip
def test_command(command, called, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSWEEP_HOME", "/there")
    sweep = {"program": "train.py", "command": command}
    assert command_of(sweep, GIVEN, tmp_path / "args.json") == called
    assert sweep["command"] == command  # as it was


def test_a_runs_place_is_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, place in (
        (tmp_path / "runs" / "a", "runs/a"),
        (Path("runs/a"), "runs/a"),
        (tmp_path.parent / "a", str(tmp_path.parent / "a")),
    ):
        assert Job("000", "a", {}, run, 3).place == Path(place)


def test_command_with_a_file(tmp_path):
    sweep = {"program": "train.py", "command": ["${args_json_file}"]}
    (path,) = command_of(sweep, GIVEN, tmp_path / "args.json")
    assert '"max_lr": 0.1' in Path(path).read_text()


@pytest.mark.parametrize(
    ("values", "goal", "expected"),
    [
        ([0.1, 0.3, 0.2], "maximize", 0.3),
        ([0.1, 0.3, 0.2], "minimize", 0.1),
        ([float("nan"), 0.2, float("inf")], "maximize", 0.2),
        ([], "maximize", None),
        ([float("nan")], "minimize", None),
    ],
)
def test_best(values, goal, expected):
    assert best(values, goal) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello\nerror: no such data\n", ["error: no such data"]),
        ("Traceback (most recent call last):\n  x\nValueError: bad\nbye\n", ["ValueError: bad"]),
        ("torch.OutOfMemoryError: CUDA\n", ["torch.OutOfMemoryError: CUDA"]),
        ("a\n\nb\nc\nd\n", ["b", "c", "d"]),
        ("", []),
    ],
)
def test_last_lines(text, expected, tmp_path):
    (tmp_path / "log").write_text("error: an earlier one\n" + text)
    assert last_lines(tmp_path / "log", len("error: an earlier one\n")) == expected


def test_a_folder_without_a_run(tmp_path):
    assert last_lines(tmp_path / "none") == []
    assert read_history(tmp_path / "none") == []
    assert not is_in_use(tmp_path / "none")


def standing(state: str, epochs: int, seconds: float) -> Standing:
    job = Job("000", "id", {}, Path("runs/id"), 10)
    return Standing(0, job, state, epochs, None, (), seconds)


@pytest.mark.parametrize(
    ("standings", "count", "workers", "expected"),
    [
        ([standing("finished", 10, 100)], 3, 1, 200),  # two more of 10 epochs, 10 s each
        ([standing("stopped", 5, 50)], 3, 2, 50),  # usual: 5 epochs
        ([standing("running", 4, 40)], 1, 1, 60),
        ([standing("finished", 10, 100), standing("running", 5, 50)], 4, 2, 125),
        ([standing("finished", 10, 100)], None, 1, None),
        ([standing("running", 0, 0)], 3, 1, None),
        ([standing("finished", 10, 100)], 1, 0, None),
    ],
)
def test_time_left(standings, count, workers, expected):
    assert seconds_left(standings, count, workers) == expected


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "20 s"), (100, "2 min"), (3600, "1 h 0 min"), (7980, "2 h 13 min")]
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], "is more than noise"),
        ([0.60, 0.51, 0.72], [0.50, 0.61, 0.62], "cannot be told from noise (Welch"),
        ([0.60, 0.61, 0.62], [0.50, 0.51], "is more than noise (Welch's t-test, 3 and 2 seeds"),
        ([0.6], [0.5], "cannot be told from noise by one seed"),
        ([0.6, 0.6], [0.5, 0.5], "2 do not show the noise"),
    ],
)
def test_verdict(one, two, words):
    confirmed = [
        Confirmed(key, key, "", 0.6, dict(enumerate(values)))
        for key, values in (("001", one), ("002", two))
    ]
    assert words in verdict(confirmed, "val/acc")
    assert "leads nobody" in verdict(confirmed[:1], "val/acc")


def test_verdict_names_the_trials_whose_seeds_failed():
    values = ({1: 0.6}, {2: 0.5, 3: 0.5}, {})
    confirmed = [Confirmed(str(n), str(n), "", 0.6, v, 3 - len(v)) for n, v in enumerate(values)]
    told = verdict(confirmed, "val/acc")
    assert "0 over trial 1, 0.1000 in val/acc, cannot be told from noise by one seed" in told
    lost = "of trial 0 2 of 3 seeds failed; of trial 1 1 of 3 seeds failed; of trial 2 3 of 3"
    assert f"give more --seeds; {lost}" in told
    assert "no seed has a value; of trial 2 3 of 3" in verdict(confirmed[2:], "val/acc")
    assert str(confirmed[2]) == "trial 2: (0.6000) 3 of 3 seeds failed  "
    going_on = dataclasses.replace(confirmed[1], failed=0, open=1)
    assert verdict([going_on], "val/acc").endswith("leads nobody; of trial 1 1 not done yet")


def study_of(folder: Path, *reached: float) -> Study:
    """With trials that are finished, and reached so much."""
    study = create(folder / "study", read(REPO / "sweep.yaml"))
    for number, value in enumerate(reached):
        run = write_run(folder / "runs", f"s-{number}", reached=value)
        given = {"max_lr": 0.1, "aug_strength": 1.0}
        job = {"run_id": run.name, "run": str(run), "parameters": given}
        study.optuna.ask().set_user_attr("job", job)
        study.claim(f"{number:03d}")
        study.ended(study.job(number, job), End("finished", value, 5))
    return study


def test_seeds_that_are_not_done_are_told(tmp_path):
    study = study_of(tmp_path, 0.6, 0.5)
    write_run(tmp_path / "runs", "s-0-seed1", reached=0.6)
    write_run(tmp_path / "runs", "s-0-seed2", state="failed")
    write_run(tmp_path / "runs", "s-1-seed1", state=None)
    write_run(tmp_path / "runs", "s-1-seed2", reached=None)  # finished, and measured nothing
    confirmation = Confirmation(study, 2, 3)
    first, second = confirmation.results()
    assert [*first.values] == [1]
    assert [first.failed, first.open] == [1, 1]
    assert not second.values
    assert [second.failed, second.open] == [1, 2]
    assert "of trial 000 1 not done yet; of trial 001 2 not done yet" in report(study, confirmation)


def test_a_machine_without_room_for_a_process_is_no_trials_fault(tmp_path, monkeypatch):
    def fail(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("driver.Trial", fail)
    study = study_of(tmp_path)
    board = Board(study, time.monotonic, lives=False)
    driver = Driver(study, Search(study, 1), None, [("cpu", {})], 5, board)
    with pytest.raises(Failure, match="try fewer --workers; the same call goes on"):
        driver.run()
    assert [one.state for one in study.standings()] == ["waiting"]


def test_a_trials_value_is_of_its_largest_images(tmp_path):
    study = study_of(tmp_path, 0.6)
    accs = {1: (8, 0.9), 2: (16, 0.3), 3: (16, 0.4)}
    cells = {epoch: {"pixels": pixels, "val/acc": acc} for epoch, (pixels, acc) in accs.items()}
    run = write_run(tmp_path / "runs", "grows", epochs=3, changed=cells)
    job = study.job(1, {"run_id": run.name, "run": str(run), "parameters": {}})
    assert study.reached(job, "finished") == 0.4
    assert list(study.values(job)) == [0.9, 0.3, 0.4]  # hyperband's
