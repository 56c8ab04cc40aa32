"""Sweeps without a server: the driver with a stand-in for train.py, and once with the real one."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from procs import kill_all
from studies import TIMEOUT_S

from conftest import REPO, assert_mistake, run
from runs import history_lines, offline_record, summary
from study_folder import create

HOME = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}  # which no trial must heed


def test_runs_counts_in_all_and_shows_how_it_stands(offline):
    made = offline(metric={"name": "val/acc", "goal": "maximize", "impute": "latest"})
    assert "trial 002 finished" in made.run("--count", "3", "--workers", "2")
    made.run("--count", "3")
    assert len(made.starts()) == 6  # three begins, three ends: the second call began none
    told = made.run("--count", "5", "--workers", "2")
    assert "5 of 5 trials: 5 finished" in told
    trials = made.journal()
    assert len(trials) == 5
    best = max(trial["told"][0][0] for trial in trials.values())
    assert f"best val/acc {best:.4f}" in told
    for number, trial in trials.items():
        given = yaml.safe_load((made.dir / "trials" / f"{number:03d}.yaml").read_text())
        assert 0.001 <= given["max_lr"]["value"] <= 10
        assert 0 <= given["aug_strength"]["value"] <= 2
        assert trial["end"]["epochs"] == 4
        (value,) = trial["told"]
        assert value == [trial["end"]["value"]]
        assert Path(trial["job"]["run"]).name == trial["job"]["run_id"]
    status = run("sweep.py", "status", made.dir)
    assert status.returncode == 0
    assert re.search(r"004 +finished +4/4 ", status.stdout)
    assert "5 of 5 trials" in status.stdout


def test_a_study_is_of_one_sweep(offline, tmp_path):
    made = offline()
    made.run("--count", "1")
    changed = offline(parameters={"max_lr": {"min": 0.1, "max": 1.0}})
    assert changed.start().wait(TIMEOUT_S) == 2
    assert "another `parameters`; give another --dir" in changed.text()
    assert len(changed.text().splitlines()) == 1
    assert_mistake(run("sweep.py", "status", tmp_path / "none"), "is no study")
    kept = made.dir / "sweep.yaml"
    kept.write_text(
        kept.read_text().replace("parameters:", "parameters:\n  seed: {max: 9, min: 0}")
    )
    for words in (("status", made.dir), ("run", kept, "--count", "2")):
        done = run("sweep.py", *words, cwd=tmp_path)
        assert_mistake(done, "was changed: the study began with another `parameters`; put it back")
    assert_mistake(run("sweep.py", "run", tmp_path / "s.yaml", "--count", "0"), "--count")
    (tmp_path / "file").write_text("")
    made = run("sweep.py", "run", tmp_path / "s.yaml", "--dir", tmp_path / "file", cwd=tmp_path)
    assert_mistake(made, "a part of it is a file")


@pytest.mark.parametrize(
    "whom",
    [
        pytest.param("driver", id="the driver alone"),
        pytest.param("all", id="the driver and its trials"),
        pytest.param("trials", id="trials alone"),
    ],
)
@pytest.mark.fault("sweep: driver or trials killed")
def test_killed_at_random_moments_nothing_is_lost_or_counted_twice(offline, whom):
    made = offline(parameters={"epochs": {"value": 6}})
    dice = random.Random(whom)
    for _ in range(3):
        begun = len(made.starts())
        driver = made.start("run", "s.yaml", "--count", "6", "--workers", "2")
        made.until(lambda begun=begun: len(made.starts()) > begun)
        time.sleep(dice.uniform(0, 0.8))
        if whom != "trials":
            driver.kill()
            driver.wait()
        if whom != "driver":
            kill_all(made.processes())
            time.sleep(0.3)
        if whom == "trials":
            driver.terminate()
            driver.wait(TIMEOUT_S)
    text = made.run("--count", "6", "--workers", "2")
    assert "6 of 6 trials: 6 finished" in text
    assert made.rows() == [6] * 6
    begun = [trial for trial in made.journal().values() if not trial.get("forgotten")]
    assert [len(trial["told"]) for trial in begun] == [1] * 6
    assert "collision" not in [start[0] for start in made.starts()]
    assert made.processes() == []


def test_two_drivers_share_a_study(offline):
    made = offline(method="bayes", parameters={"epochs": {"value": 8}})
    first, second = (made.start("run", "s.yaml", "--count", "7") for _ in range(2))
    assert [first.wait(TIMEOUT_S), second.wait(TIMEOUT_S)] == [0, 0], made.text()
    trials = made.journal()
    assert len(trials) == 7
    assert all(len(trial["told"]) == 1 for trial in trials.values())
    drawn = {(t["job"]["parameters"]["max_lr"]) for t in trials.values()}
    assert len(drawn) == 7
    begun = [set(re.findall(r"trial (\d+) begins", made.text(n))) for n in (0, 1)]
    assert begun[0] and begun[1] and not begun[0] & begun[1]
    assert len(begun[0] | begun[1]) == 7


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)]
)
@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_asked_to_end_it_saves_its_trials_and_goes_on(offline, number, status):
    made = offline(parameters={"epochs": {"value": 20}})
    driver = made.start("run", "s.yaml", "--count", "2", "--workers", "2")
    made.until(lambda: sum(made.rows()) >= 4)
    driver.send_signal(number)
    assert driver.wait(TIMEOUT_S) == status
    assert "2 trials are saved; the same call goes on" in made.text()
    runs = sorted((made.folder / "runs").glob("s-*"))
    assert [summary(run)["state"] for run in runs] == ["preempted"] * 2
    before = [history_lines(run) for run in runs]
    assert re.search(r"000 +waiting", run("sweep.py", "status", made.dir).stdout)
    assert "begins again" in made.run("--count", "2", "--workers", "2")
    for folder, lines in zip(runs, before, strict=True):
        assert history_lines(folder)[: len(lines)] == lines
    assert made.rows() == [20, 20]


@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_a_failing_trial_does_not_end_the_sweep(offline):
    made = offline(
        method="grid",
        parameters={
            "split_seed": {"values": [1, 13, 2]},
            "max_lr": {"value": 0.1},
            "aug_strength": {"value": 1.0},
        },
    )
    text = made.run()
    assert "trial 001 failed (1 of at most 5 in a row): error: split_seed 13 brings bad" in text
    assert "3 trials: 2 finished, 1 failed" in text
    status = run("sweep.py", "status", made.dir)
    assert "trial 001 failed: error: split_seed 13 brings bad luck" in status.stdout


@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_a_trial_that_dies_after_its_end_is_finished(offline):
    made = offline()
    assert "1 of 1 trials: 1 finished" in made.run("--count", "1", STUB_DIES="1")
    assert [what for what, *_ in made.starts()] == ["begin", "end"]


@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_a_trial_that_failed_by_itself_is_not_started_again(offline):
    """Also where what is left of it is killed then, as torchrun does it."""
    made = offline()
    failing = {"STUB_STATE": "failed", "STUB_DIES": "1"}
    made.start("run", "s.yaml", "--count", "1", **failing).wait(TIMEOUT_S)
    assert [what for what, *_ in made.starts()] == ["begin", "end"]
    assert "trial 000 failed" in made.text()
    assert "signal" not in made.text()


@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_failures_in_a_row_end_it(offline):
    made = offline(parameters={"split_seed": {"value": 13}})
    driver = made.start("run", "s.yaml", "--count", "9", "--max-failures", "2")
    assert driver.wait(TIMEOUT_S) == 1
    assert "2 failures in a row: no more trials are started" in made.text()
    assert len(made.journal()) == 2


def test_hyperband_stops_what_has_no_hope(offline):
    made = offline(
        method="grid",
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3},
        parameters={
            "max_lr": {"values": [0.1, 0.2, 1.0, 5.0]},
            "aug_strength": {"value": 1.0},
            "epochs": {"value": 20},
        },
    )
    text = made.run(STUB_EPOCH_S="0.15")
    assert "trial 000 finished: val/acc 0.9850, 20 epochs" in text
    ends = [trial["end"] for trial in made.journal().values()]
    assert [end["state"] for end in ends] == ["finished", "stopped", "stopped", "stopped"]
    for end, trial, rows in zip(ends, made.journal().values(), made.rows(), strict=True):
        assert trial["told"] == [[end["value"]]]  # its score counts
        assert end["epochs"] == rows
    assert max(rows for rows in made.rows()[1:]) < 10


@pytest.mark.fault("sweep: signals, failures, a cut journal")
def test_a_journal_that_was_cut_goes_on(offline):
    made = offline()
    made.run("--count", "1")
    with open(made.dir / "study.journal", "a") as journal:
        journal.write('{"op_code": 4, "worker_id": "x')  # as a full disk leaves it
    assert "2 of 2 trials: 2 finished" in made.run("--count", "2")


def test_the_next_trial_begins_within_a_second(offline):
    made = offline(parameters={"epochs": {"value": 3}})
    made.run("--count", "4")
    told = made.starts()
    ends = [float(one[4]) for one in told if one[0] == "end"]
    begins = [float(one[3]) for one in told if one[0] == "begin"]  # its own first line
    gaps = [begin - end for begin, end in zip(begins[1:], ends, strict=False)]
    assert len(gaps) == 3
    assert min(gaps) < 1, gaps  # the machine may be busy with other tests


GRID_OF_SEEDS = {
    "seed": {"values": [0, 1]},
    "max_lr": {"value": 0.1},
    "aug_strength": {"value": 1.0},
}


def test_confirm_tells_whether_the_lead_is_noise(offline):
    made = offline(
        method="grid",
        parameters={
            "max_lr": {"values": [0.1, 0.11, 1.0]},
            "aug_strength": {"value": 1.0},
            "seed": {"value": 11},  # of the others, 12 to 14, one fails
        },
    )
    made.run(STUB_EPOCH_S="0.02")
    driver = made.start("confirm", str(made.dir), "--top", "3", "--workers", "2")
    assert driver.wait(TIMEOUT_S) == 0, made.text()
    assert (
        "the lead of trial 000 over trial 001, 0.0002 in val/acc, cannot be told from noise"
        in made.text()
    )
    kept = json.loads((made.dir / "confirm.json").read_text())
    seeds = [sorted(trial["values"]) for trial in kept["trials"]]
    assert seeds == [["12", "14"]] * 3
    assert [trial["failed"] for trial in kept["trials"]] == [1] * 3
    assert "; of trial 000 1 of 3 seeds failed; of trial 001" in kept["sentence"]
    assert kept["trials"][0]["mean"] == pytest.approx(0.925 + 0.013)
    assert kept["trials"][0]["sd"] == pytest.approx(0.001 * 2**0.5)
    begun = len(made.starts())
    again = made.start("confirm", str(made.dir), "--top", "3")
    assert again.wait(TIMEOUT_S) == 0
    assert len(made.starts()) == begun + 3  # those that failed are tried again, the rest is done
    assert len(made.journal()) == 3  # no trials of the search
    fewer = made.start("confirm", str(made.dir), "--top", "3", "--seeds", "1")
    assert fewer.wait(TIMEOUT_S) == 0
    assert len(made.starts()) == begun + 3
    assert json.loads((made.dir / "confirm.json").read_text())["trials"][0]["values"].keys() == {
        "12",
        "14",
    }


def test_confirm_refuses_a_search_that_has_chosen_by_the_seed(offline):
    made = offline(method="grid", parameters=GRID_OF_SEEDS)
    made.run(STUB_EPOCH_S="0.02")
    assert_mistake(run("sweep.py", "confirm", made.dir), "`seed` is a parameter of the search")


def test_two_drivers_confirm_together(offline):
    made = offline()
    made.run("--count", "2")
    both = [made.start("confirm", str(made.dir), "--top", "2") for _ in "ab"]
    assert [driver.wait(TIMEOUT_S) for driver in both] == [0, 0], made.text()
    kept = json.loads((made.dir / "confirm.json").read_text())
    assert [sorted(trial["values"]) for trial in kept["trials"]] == [["1", "2", "3"]] * 2
    assert "not done yet" not in kept["sentence"]
    assert set(Counter(name for what, name, *_ in made.starts() if what == "begin").values()) == {1}


def test_train_py_by_the_sweep_file_of_the_house(tmp_path, shapes_dir):
    """Two trials of the real train.py, with a command that passes no arguments."""
    sweep = yaml.safe_load((REPO / "sweep.yaml").read_text())
    fixed = {"dataset": "shapes", "data_dir": str(shapes_dir), "model": "small", "epochs": 2}
    fixed |= {"image_size": 16, "batch_size": 16, "workers": 0, "mistakes": 4}
    sweep["parameters"] |= {key: {"value": value} for key, value in fixed.items()}
    sweep |= {"program": str(REPO / "train.py"), "run_cap": 2}
    sweep["command"] = ["${env}", "${interpreter}", "${program}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = run("sweep.py", "run", "sweep.yaml", "--workers", "2", cwd=tmp_path, **HOME)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials: 2 finished" in done.stdout
    for folder in (tmp_path / "runs").iterdir():
        assert summary(folder)["state"] == "finished"
        given = tmp_path / "sweeps" / "lr-and-augmentation" / "trials" / f"{folder.name[-3:]}.yaml"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in yaml.safe_load(given.read_text()).items():
            assert key == "wandb_version" or config[key] == value["value"]
        said = given.with_suffix(".log").read_text().splitlines()
        assert said[-1].startswith("finished: "), said  # nor do extensions complain at the end
        record = json.dumps(offline_record(folder))
        assert '"run_group": "lr-and-augmentation"' in record, record[:2000]


@pytest.mark.parametrize(
    ("command", "parameters", "expected"),
    [
        (["${program}"], {}, "runs"),
        (["${program}", "--output_dir=a b"], {}, "a b"),
        (["${program}", "--output_dir=a"], {"output_dir": "b"}, "b"),
        (["${program}", "--output_dir=${envvar:TINYSWEEP_HOME}/runs"], {}, "/there/runs"),
        (["${program}", "--output_dir", "${envvar:TINYSWEEP_HOME}"], {}, "/there"),
    ],
)
def test_where_the_runs_go(tmp_path, offline, command, parameters, expected, monkeypatch):
    monkeypatch.setenv("TINYSWEEP_HOME", "/there")
    made = offline(command=command)
    found = create(tmp_path / "s", yaml.safe_load((made.folder / "s.yaml").read_text()))
    assert found.output_dir(parameters) == Path(expected)


def test_a_study_keeps_the_recipe_that_it_began_with(offline):
    made = offline(command=["${interpreter}", "${program}", "--config=r.yaml", "${args}"])
    recipe = made.folder / "r.yaml"
    recipe.write_text("seed: 3\ncutmix: 0.5\n")
    made.run("--count", "1")
    recipe.write_text("seed: 3\ncutmix: 0.4\n")
    changed = run("sweep.py", "run", "s.yaml", "--count", "2", cwd=made.folder)
    assert_mistake(changed, "began with cutmix=0.5", "0.4", "another --dir")
    confirmed = run("sweep.py", "confirm", made.dir, cwd=made.folder)
    assert_mistake(confirmed, "began with cutmix=0.5", "as it was")
    recipe.unlink()
    shown = run("sweep.py", "status", made.dir, cwd=made.folder.parent)
    assert shown.returncode == 0, shown.stderr
    assert "1 finished" in shown.stdout


def test_a_command_that_is_not_there_fails_each_trial(offline):
    made = offline(command=["nothere", "${args}"])
    driver = made.start("run", "s.yaml", "--count", "9", "--max-failures", "2")
    assert driver.wait(TIMEOUT_S) == 1
    assert "trial 001 failed (2 of at most 2 in a row): nothere: No such file" in made.text()


@pytest.mark.fault("sweep: driver or trials killed")
def test_a_study_that_was_killed_at_its_birth_goes_on(offline):
    made = offline()
    made.run("--count", "1")
    journal = made.dir / "study.journal"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")  # no token, no trial
    assert "1 of 1 trials: 1 finished" in made.run("--count", "1")


def test_any_folder_name_and_a_trial_goes_on_where_it_began(offline, tmp_path):
    made = offline(parameters={"epochs": {"value": 30}})
    driver = made.start("run", "s.yaml", "--count", "1", "--dir", "my stüdy")
    made.until(lambda: sum(len(history_lines(one)) for one in made.runs()) >= 3)
    driver.send_signal(signal.SIGINT)
    driver.wait(TIMEOUT_S)
    (folder,) = made.runs()
    assert re.fullmatch(r"my-st-dy-[a-z0-9]{4}-000", folder.name)
    (tmp_path / "elsewhere").mkdir()
    call = ("run", tmp_path / "s.yaml", "--count", "1", "--dir", tmp_path / "my stüdy")
    done = run("sweep.py", *call, cwd=tmp_path / "elsewhere")
    assert_mistake(done, "call this where the study was begun")
    assert "1 finished" in made.run("--count", "1", "--dir", "my stüdy")


def test_the_target_of_the_metric_ends_the_search(offline):
    made = offline(metric={"name": "val/acc", "goal": "maximize", "target": 0.5})
    text = made.run()  # no count, and no run_cap
    *before, last = [told[0] for trial in made.journal().values() for told in trial["told"]]
    assert last >= 0.5 > max(before, default=0.0)
    assert "val/acc has reached its target, 0.5" in text


def test_a_trial_that_failed_has_reached_no_target(offline):
    made = offline(
        method="grid",
        metric={"name": "val/acc", "goal": "maximize", "target": -9.0},
        parameters={
            "split_seed": {"values": [14, 1, 2]},
            "max_lr": {"value": 0.1},
            "aug_strength": {"value": 1.0},
        },
    )
    assert "2 trials: 1 failed, 1 finished" in made.run()


def test_trials_in_the_middle_go_on_when_the_target_is_reached(offline):
    made = offline(
        metric={"name": "val/acc", "goal": "maximize", "target": -9.0},
        parameters={"epochs": {"value": 12}},
    )
    driver = made.start()
    made.until(lambda: made.rows() and max(made.rows()) >= 2)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(TIMEOUT_S) == -signal.SIGINT
    assert max(made.rows()) < 12
    made.run()
    assert made.rows() == [12]


def test_failures_are_told_also_where_nobody_reads(offline):
    made = offline(parameters={"split_seed": {"value": 13}})
    command = [sys.executable, REPO / "sweep.py", "run", "s.yaml", "--max-failures", "2"]
    driver = subprocess.Popen(command, cwd=made.folder, stdout=subprocess.PIPE)
    driver.stdout.close()
    assert driver.wait(TIMEOUT_S) == 1


@pytest.mark.parametrize("lines", [0, 2])
def test_nobody_reads_the_output_and_the_search_goes_on(offline, lines):
    made = offline()
    command = [sys.executable, REPO / "sweep.py", "run", "s.yaml", "--count", "4"]
    driver = subprocess.Popen(
        command, cwd=made.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(lines):
        driver.stdout.readline()
    driver.stdout.close()
    assert driver.wait(TIMEOUT_S) == 0
    assert driver.stderr.read() == ""
    assert made.rows() == [4, 4, 4, 4]


def test_a_mistake_in_the_call_leaves_no_study(offline):
    made = offline()
    env = {"CUDA_VISIBLE_DEVICES": "0"}
    done = run("sweep.py", "run", "s.yaml", "--devices", "2", cwd=made.folder, **env)
    assert_mistake(done, "--devices 2: there are 1 GPUs")
    assert not made.dir.exists()


def test_what_may_change_in_the_file_is_kept_as_it_was_given_last(offline):
    made = offline(run_cap=1)
    made.run()
    path = made.folder / "s.yaml"
    path.write_text(path.read_text().replace("run_cap: 1", "run_cap: 2"))
    made.run()
    assert yaml.safe_load((made.dir / "sweep.yaml").read_text())["run_cap"] == 2
    assert made.rows() == [4, 4]


def test_a_report_shows_trials_that_never_trained(offline):
    made = offline(command=["nothere", "${args}"])
    driver = made.start("run", "s.yaml", "--count", "1")
    assert driver.wait(TIMEOUT_S) == 1
    assert "no trial has a val/acc" in made.text()
    done = run("report.py", made.dir, "-o", made.folder / "report.html")
    assert done.returncode == 0, done.stderr
    page = (made.folder / "report.html").read_text()
    assert "failed" in page
    assert "unknown data" not in page
    assert "label_smoothing" not in page  # all have the default
