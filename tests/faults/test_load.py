"""Many at once, and many after each other: every trial recorded once, the driver's memory flat."""

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from studies import Offline

import study
from conftest import REPO
from runs import history_lines, summary
from study_folder import create

TRIALS = 200
GROWTH_MIB = 40  # of the driver between its 50th trial and its last


def resident_mib(pid: int) -> float:
    """0 once it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_what_has_ended_is_not_read_again(tmp_path, monkeypatch):
    """A look each second at thousands of trials costs what those at work cost."""
    monkeypatch.chdir(tmp_path)
    sweep = {
        "program": "train.py",
        "method": "random",
        "metric": {"name": "val/acc", "goal": "maximize"},
        "parameters": {"max_lr": {"min": 0.01, "max": 0.1}},
    }
    made = create(tmp_path / "s", sweep)
    for number in range(20):
        job = made.next(None)
        job.run.mkdir(parents=True)
        (job.run / "history.csv").write_text(f"epoch,val/acc,time/epoch_s\n1,0.{number},2.5\n")
        if number < 19:
            made.ended(job, study.End("finished", number / 100, 1))
    before = made.standings()
    assert [one.state for one in before] == ["finished"] * 19 + ["running"]
    assert {one.seconds for one in before} == {2.5}
    shutil.rmtree(tmp_path / "runs")
    after = made.standings()
    assert after[:-1] == before[:-1]
    assert (after[-1].epochs, after[-1].seconds) == (0, 0)


@pytest.mark.slow
def test_two_hundred_trials(offline, fault):
    """By the Bayesian search, which has all trials in memory."""
    made = offline(method="bayes", parameters={"epochs": {"value": 1}})
    driver = made.start(
        "run", "s.yaml", "--count", str(TRIALS), "--workers", "4", STUB_EPOCH_S="0.01"
    )
    with fault("a trial of 200", count=TRIALS):
        early = late = 0.0
        deadline = time.monotonic() + 1800
        while driver.poll() is None:
            assert time.monotonic() < deadline, made.text()
            begun = len(made.starts()) // 2
            if begun < TRIALS - 2:  # its end, with a table and a sentence, takes 60 MiB more, once
                late = resident_mib(driver.pid) or late
            if begun < 50:
                early = late
            time.sleep(0.2)
        assert driver.returncode == 0, made.text()
        began = [name for what, name, *_ in made.starts() if what == "begin"]
        assert len(began) == len(set(began)) == TRIALS
        told = [trial["told"] for trial in made.journal().values()]
        assert len(told) == TRIALS
        assert all(len(one) == 1 for one in told)
        print(f"driver: {early:.0f} MiB after 50 trials, {late:.0f} MiB after {TRIALS}")
        assert late - early < GROWTH_MIB


@pytest.mark.slow
def test_two_sweeps_and_four_trials_share_a_cache_and_a_folder(shapes_dir, tmp_path, fault):
    """With the real train.py; who comes first decodes the images."""
    shutil.copytree(shapes_dir / "shapes", tmp_path / "data" / "shapes")
    flags = ["--dataset=shapes", "--data_dir=data", "--image_size=16", "--model=small"]
    flags += ["--workers=0", "--batch_size=16"]
    sweeps = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made = Offline(
            tmp_path,
            name=name,
            program=str(REPO / "train.py"),
            command=["${env}", "${interpreter}", "${program}", *flags, "${args}"],
            parameters={"max_lr": {"min": 0.001, "max": 0.1}, "epochs": {"value": 2}},
        )
        file = tmp_path / f"{name}.yaml"
        (tmp_path / "s.yaml").rename(file)
        made.dir = tmp_path / "sweeps" / name
        sweeps.append((made, made.start("run", file.name, "--count", "4", "--workers", "2")))
    with fault("a trial among four on one cache", count=8):
        for made, driver in sweeps:
            assert driver.wait(timeout=300) == 0, made.text()
        runs = sorted((tmp_path / "runs").glob("*-*"))
        assert len(runs) == 8
        for run in runs:
            assert summary(run)["state"] == "finished"
            assert len(history_lines(run)) == 3
        for made, _ in sweeps:
            journal = made.journal()
            assert [len(trial["told"]) for trial in journal.values()] == [1] * 4
        caches = [path for path in (tmp_path / "data" / ".cache").iterdir() if path.is_dir()]
        assert len(caches) == 1
    parameters = [yaml.safe_load((run / "config.yaml").read_text())["max_lr"] for run in runs]
    assert len(set(parameters)) == 8
