"""`python sweep.py agents`: agents started, watched, preempted, and given a device each."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from procs import parent_of, working_in
from sweeps import folder_of, launch, training_in

import agents
from cli import Mistake
from conftest import assert_mistake, run
from runs import history_lines

# The command as the agent logs it, the sweep's parameter output_dir, the folder of the run.
PLACES = {
    "default": ("", None, "runs"),
    "flag": ("--output_dir=there --seed=1", None, "there"),
    "last flag": ("--output_dir=here --output_dir=there", None, "there"),
    "two words": ("--output_dir there", None, "there"),
    "spaces": ('"--output_dir=over there" --seed=1', None, "over there"),
    "two words with spaces": ('--output_dir "over there"', None, "over there"),
    "recipe": ("--config=recipe.yaml", None, "by_recipe"),
    "flag over recipe": ("--config=recipe.yaml --output_dir=there", None, "there"),
    "${args}": ("--output_dir=there", "there", "there"),
    "no ${args}": ("", "there", "there"),
    "parameter over flag": ("--output_dir=here", "there", "there"),
    "handed out again": ("--parameters=1 --output_dir=there", "there", "there"),
    "handed out again, from another machine": (
        "--output_dir=there --parameters=1 --output_dir=/old",
        "/old",
        "there",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wandb_dir", [None, "elsewhere"])
def test_the_launcher_finds_how_a_run_ended(tmp_path, monkeypatch, place, wandb_dir):
    from wandb.sdk.lib import config_util

    words, parameter, output_dir = PLACES[place]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    if wandb_dir:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / wandb_dir))
    Path("recipe.yaml").write_text("output_dir: by_recipe\n")
    parameters = {"seed": {"value": 1}}
    if "again" in place:
        parameters["parameters"] = {"value": 1}
    if parameter:
        parameters["output_dir"] = {"value": parameter}
    given = Path(wandb_dir or ".") / "wandb" / "sweep-abc" / "config-r1.yaml"
    given.parent.mkdir(parents=True)
    config_util.save_config_file_from_dict(given, parameters)  # as the agent does
    lines = [
        f"INFO - About to run command: /usr/bin/env python train.py {words}\n",
        "INFO - Cleaning up finished run: r1\n",
    ]
    agent = agents.Agent("0", [sys.executable, "-c", f"print({''.join(lines)!r})"], None, {})
    agent.start()
    agent.reader.join()
    agent.wait(time.monotonic() + 10)
    (ended,) = agent.ended
    assert agents.state_of(ended, "abc") is None  # nothing is there yet
    for folder in ("runs", "here", "there", "over there", "by_recipe"):
        state = "finished" if folder == output_dir else "failed"
        (tmp_path / folder / "r1").mkdir(parents=True)
        (tmp_path / folder / "r1" / "summary.json").write_text(json.dumps({"state": state}))
    assert agents.state_of(ended, "abc") == "finished"
    later = dataclasses.replace(ended, begun=time.time() + 60)  # as if it were of a start before
    assert agents.state_of(later, "abc") == "finished"  # the run had nothing to do
    (tmp_path / output_dir / "r1" / "summary.json").write_text('{"state": "preempted"}')
    assert agents.state_of(ended, "abc") == "preempted"
    assert agents.state_of(later, "abc") is None  # it did not even begin
    assert agents.state_of(dataclasses.replace(ended, run_id="r2"), "abc") is None


def test_the_launcher_preempts_all_and_goes_on(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 2
    launcher = launch(made, "--workers", "2")
    made.until(lambda: made.epochs(0) >= 1 and made.epochs(1) >= 1)
    launcher.send_signal(signal.SIGTERM)
    made.until(lambda: launcher.poll() is not None, 40)
    assert launcher.returncode == -signal.SIGTERM
    assert working_in(made.folder) == {}
    assert [made.run(n).exit_code for n in (0, 1)] == [143, 143]
    assert sorted(made.stored.waiting) == sorted(made.stored.runs)  # to be handed out again
    again = launch(made, "--workers", "2")
    made.until(lambda: again.poll() is not None)
    assert again.returncode == 0, made.text()
    assert [made.run(n).exit_code for n in (0, 1)] == [0, 0]
    for number in (0, 1):
        rows = [row["epoch"] for row in made.run(number).history if "val/acc" in row]
        assert sorted(set(rows)) == [1, 2, 3]
        assert len(history_lines(folder_of(made, made.run(number).name))) == 4


@pytest.mark.slow
def test_the_launcher_preempts_a_run_of_two_processes(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 1
    launcher = launch(made, "--devices", "2")
    made.until(lambda: made.epochs(0) >= 1)
    launcher.send_signal(signal.SIGTERM)
    made.until(lambda: launcher.poll() is not None, 40)
    assert working_in(made.folder) == {}
    assert made.run(0).exit_code == 143
    assert made.stored.waiting == made.stored.runs
    again = launch(made, "--devices", "2")
    made.until(lambda: again.poll() is not None)
    assert again.returncode == 0, made.text()
    assert made.run(0).exit_code == 0
    assert len(history_lines(folder_of(made, made.run(0).name))) == 4


@pytest.mark.slow
def test_an_agent_that_is_killed_is_started_again_and_its_run_preempted(sweep, server, slowly):
    made = sweep(epochs=3)
    made.stored.limit = 3
    launcher = launch(made, "--count", "1")  # all the same: what is begun again is the same run
    made.until(lambda: made.epochs(0) >= 1)
    train = training_in(made.folder)
    os.kill(parent_of(train), signal.SIGKILL)
    made.until(lambda: made.run(0).exit_code == 143, 30)
    made.until(lambda: launcher.poll() is not None)
    assert launcher.returncode == 0
    assert made.run(0).exit_code == 0
    assert made.stored.runs == [made.run(0).name]
    text = (made.folder / "agents.txt").read_text()
    assert "failure 1 of at most 5 in a row, 0: the agent ended with status -9" in text
    assert len(history_lines(folder_of(made, made.run(0).name))) == 4
    assert working_in(made.folder) == {}


@pytest.mark.slow
def test_the_launcher_counts_a_killed_run_as_a_failure_and_stops(sweep, server, slowly):
    made = sweep(epochs=40)
    launcher = launch(made, "--max-failures", "2")
    for number in (0, 1):
        made.until(lambda number=number: made.epochs(number) >= 1)
        os.kill(training_in(made.folder), signal.SIGKILL)
    made.until(lambda: launcher.poll() is not None, 40)
    assert launcher.returncode == 1
    text = (made.folder / "agents.txt").read_text()
    for number in (0, 1):
        assert (
            f"failure {number + 1} of at most 2 in a row, 0: run {made.run(number).name} left no "
            "summary: killed, or ended before it began; last error: it printed none\n"
        ) in text
    assert text.endswith("2 failures in a row: no more runs are started\n")
    # W&B's monitor of a run that was killed with -9 takes a moment to notice.
    made.until(lambda: working_in(made.folder) == {}, 20)


@pytest.mark.slow
def test_the_launcher_shows_why_runs_fail_and_stops(sweep, server, tmp_path):
    made = sweep(dataset="tiny-imagenet", data_dir=tmp_path / "nowhere")
    made.stored.limit = 9
    launcher = launch(made, "--max-failures", "2")
    made.until(lambda: launcher.poll() is not None, 120)
    assert launcher.returncode == 1
    text = (made.folder / "agents.txt").read_text()
    for number in (0, 1):
        run = made.run(number)
        assert run.exit_code == 2
        line = text.partition(f"failure {number + 1} of at most 2 in a row, 0: run {run.name} ")[2]
        assert "nowhere" in line.splitlines()[0].partition("last error: error: ")[2]
    assert "failure 3" not in text
    assert text.endswith("2 failures in a row: no more runs are started\n")
    assert working_in(made.folder) == {}


def test_slurm_and_mistakes_of_the_launcher():
    printed = run("sweep.py", "agents", "me/tinysweep/abc", "--print-slurm", "--workers", "3")
    assert printed.returncode == 0
    for line in ("--array=0-2", "--signal=USR1@120", "--requeue", "agents me/tinysweep/abc"):
        assert line in printed.stdout
    spaced = run("sweep.py", "agents", "me/my project/abc", "--print-slurm", "--workers", "3")
    assert "agents 'me/my project/abc' --workers 1" in spaced.stdout, spaced.stderr
    checked = subprocess.run(["bash", "-n"], input=printed.stdout, text=True)
    assert checked.returncode == 0
    assert_mistake(run("sweep.py", "agents", "abc"), "ENTITY/PROJECT/ID")
    assert_mistake(run("sweep.py", "agents", "a/b/c", "--workers", "0"), "--workers=0")
    assert_mistake(run("sweep.py", "agent", "a/b/c"), "agents")


def test_each_agent_has_its_own_device_or_its_share_of_the_threads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pinned = {"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}
    assert [env for _, env in agents.places(None)] == [*pinned]
    assert [env for _, env in agents.places(3)] == [*pinned, pinned[0]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(agents, "cores", lambda: 8)
    assert [env for _, env in agents.places(3)] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [env for _, env in agents.places(None)] == [{"OMP_NUM_THREADS": "8"}]


def test_a_run_of_several_devices_has_them_all(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    several = {"TINYSWEEP_PROCESSES": "2"}
    pairs = [{"CUDA_VISIBLE_DEVICES": two, **several} for two in ("0,1", "2,3")]  # 4 is left over
    assert [env for _, env in agents.places(None, 2)] == pairs
    assert [env for _, env in agents.places(3, 2)] == [*pairs, pairs[0]]
    with pytest.raises(Mistake, match="--devices 6: there are 5 GPUs"):
        agents.places(None, 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(agents, "cores", lambda: 8)
    assert [env for _, env in agents.places(2, 2)] == [{"OMP_NUM_THREADS": "2", **several}] * 2
