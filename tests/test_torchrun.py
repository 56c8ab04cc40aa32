"""torchrun itself: a process of a run that dies, and signals to it, also as a trial of a sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from procs import called_with, kill_all, parent_of, variables

from conftest import REPO
from runs import FAST, exit_code, history, history_lines, summary


@pytest.fixture
def torchrun(shapes_dir, tmp_path):
    """Start a run by torchrun, and leave nothing of it."""
    started = []

    def begin(*flags: str, command: tuple = (), **env: str) -> subprocess.Popen:
        output = open(tmp_path / "output.txt", "wb")
        flags = ("--dataset=shapes", f"--data_dir={shapes_dir}", "--image_size=16", *flags)
        flags += ("--model=small", f"--output_dir={tmp_path}/runs", "--run_id=run", "--workers=1")
        by = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        started.append(
            subprocess.Popen(
                [sys.executable, *(command or by), REPO / "train.py", *flags],
                env={**os.environ, **FAST, "HOME": str(tmp_path), "WANDB_MODE": "offline", **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        )
        return started[-1]

    begin.started = started
    yield begin
    for process in started:
        process.kill()
        process.wait()
    kill_all(called_with(str(tmp_path)))


def until(happened, tmp_path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)


def ranks_of(tmp_path: Path) -> dict[str, int]:
    """Process numbers by their ranks."""
    found = {}
    for pid in called_with(f"{tmp_path}/runs"):
        rank = variables(pid).get("RANK")
        if rank and parent_of(pid) not in found.values():
            found.setdefault(rank, pid)
    return found


@pytest.mark.fault("several processes: one killed, or a signal")
def test_torchrun_when_a_rank_dies(torchrun, tmp_path):
    process = torchrun("--epochs=500")
    until(lambda: len(history_lines(tmp_path / "runs/run")) > 1, tmp_path)
    os.kill(ranks_of(tmp_path)["1"], signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - killed < 15
    until(lambda: not called_with(f"{tmp_path}/runs"), tmp_path, 5)
    assert summary(tmp_path / "runs/run")["state"] == "failed"
    text = (tmp_path / "output.txt").read_text()
    assert "another process of this run has ended" in text
    assert "Signal 9 (SIGKILL)" in text  # torchrun says which


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault("several processes: one killed, or a signal")
def test_a_signal_to_torchrun_saves_the_run(number, torchrun, tmp_path):
    """SIGUSR1 ends torchrun itself: its processes see that it is gone."""
    process = torchrun("--epochs=500")
    until(lambda: len(history_lines(tmp_path / "runs/run")) > 1, tmp_path)
    process.send_signal(number)
    process.wait(timeout=30)
    until(lambda: not called_with(f"{tmp_path}/runs"), tmp_path, 20)
    expected = "interrupted" if number == signal.SIGINT else "preempted"
    assert summary(tmp_path / "runs/run")["state"] == expected
    assert exit_code(tmp_path / "runs/run") == (255 if number == signal.SIGINT else 143)


@pytest.mark.slow
@pytest.mark.fault("several processes: one killed, or a signal")
def test_in_a_sweep_sigterm_is_a_stop(torchrun, tmp_path):
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({"epochs": {"value": 500}}))
    env = {"WANDB_SWEEP_PARAM_PATH": str(given), "TINYSWEEP_PROCESSES": "2"}
    process = torchrun(command=("-u",), **env)  # as sweep.py starts it
    until(lambda: len(history_lines(tmp_path / "runs/run")) > 1, tmp_path)
    assert sorted(ranks_of(tmp_path)) == ["0", "1"]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    assert summary(tmp_path / "runs/run")["state"] == "stopped"
    assert exit_code(tmp_path / "runs/run") == 0


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun preempted", "rank 0 killed", "rank 1 killed"])
@pytest.mark.fault("several processes: one killed, or a signal")
def test_a_trial_of_two_processes_goes_on(whom, torchrun, shapes_dir, tmp_path):
    flags = ["--dataset=shapes", f"--data_dir={shapes_dir}", "--image_size=16", "--model=small"]
    flags += [f"--output_dir={tmp_path}/runs", "--batch_size=2"]  # so that an epoch takes a while
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "program": str(REPO / "train.py"),
                "name": "s",
                "method": "random",
                "metric": {"name": "val/acc", "goal": "maximize"},
                "parameters": {"max_lr": {"min": 0.01, "max": 0.1}, "epochs": {"value": 4}},
                "command": ["${env}", "${interpreter}", "${program}", *flags, "${args}"],
            }
        )
    )
    driver = subprocess.Popen(
        [sys.executable, REPO / "sweep.py", "run", "s.yaml", "--count", "1", "--devices", "2"],
        cwd=tmp_path,
        env={**os.environ, **FAST},
        stdout=open(tmp_path / "output.txt", "wb"),
        stderr=subprocess.STDOUT,
    )
    torchrun.started.append(driver)
    until(lambda: list(tmp_path.glob("runs/*/history.csv")), tmp_path)
    number = signal.SIGUSR1 if "torchrun" in whom else signal.SIGKILL
    rank = ranks_of(tmp_path)["0" if "rank 0" in whom else "1"]
    os.kill(parent_of(rank) if "torchrun" in whom else rank, number)
    assert driver.wait(timeout=90) == 0
    text = (tmp_path / "output.txt").read_text()
    assert f"its process was ended by signal {number.value}" in text
    assert "finished: val/acc" in text
    (folder,) = tmp_path.glob("runs/*/")
    starts = json.loads((folder / "about.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 2]
    assert [row["epoch"] for row in history(folder)] == ["1", "2", "3", "4"]
