"""`wandb sweep` and `wandb agent`, the real ones, with train.py, against a stand-in server."""

import signal
import time

import pytest
import yaml
from procs import working_in
from sweeps import assert_whole, folder_of, training_in

from conftest import REPO
from runs import assert_same_bits, history_lines, summary

RANGES = {"max_lr": (0.01, 1.0), "aug_strength": (0.0, 2.0)}


def test_two_agents_and_a_command_without_args(sweep, server):
    """Three runs by two agents: every key, picture, table and artifact arrives whole."""
    made = sweep(command=["${env}", "${interpreter}", "${program}"])
    agents = [made.agent(), made.agent()]
    made.until(lambda: all(agent.poll() is not None for agent in agents), 150)
    assert [agent.returncode for agent in agents] == [0, 0], made.text()
    assert len(made.stored.agents) == 2
    assert len(made.stored.runs) == len(server.runs) == 3
    drawn = set()
    for name in made.stored.runs:
        run, folder = server.runs[name], folder_of(made, name)
        assert (run.sweep, run.exit_code, run.project) == (made.stored.name, 0, "tinysweep")
        for key, one in made.stored.arguments[name].items():
            assert run.config[key] == one["value"], key  # what W&B shows
        written = yaml.safe_load((folder / "config.yaml").read_text())  # is what ran
        assert {key: run.config[key] for key in written} == written
        for key, (low, high) in RANGES.items():
            assert low <= run.config[key] <= high
        drawn.add(run.config["max_lr"])
        assert_whole(server, run, folder)
    assert len(drawn) == 3


@pytest.mark.slow
def test_three_runs_by_one_agent_with_the_sweeps_own_command(sweep, server):
    made = sweep(epochs=1)
    made.stored.limit = 9  # it is --count that ends the agent
    agent = made.agent("--count", "3")
    made.until(lambda: agent.poll() is not None, 300)
    assert agent.returncode == 0, made.text()
    assert len(made.stored.agents) == 1
    assert len(made.stored.runs) == len(server.runs) == 3
    log = (made.folder / "agent0.txt").read_text()
    for name in made.stored.runs:
        run, given = server.runs[name], made.stored.arguments[name]
        assert (run.sweep, run.exit_code, run.starts) == (made.stored.name, 0, 1)
        flags = [f"--config={REPO}/recipes/best.yaml"]
        flags += [f"--{key}={one['value']}" for key, one in given.items()]
        words = ["/usr/bin/env", "python", str(REPO / "train.py"), *flags]
        command = " ".join(f'"{word}"' if " " in word else word for word in words)  # as it logs it
        assert f"About to run command: {command}\n" in log
        written = yaml.safe_load((folder_of(made, name) / "config.yaml").read_text())
        for key, (low, high) in RANGES.items():
            assert low <= run.config[key] <= high
            assert run.config[key] == written[key] == given[key]["value"]
        assert run.config["cutmix"] == written["cutmix"] == 0.5  # of the recipe
        assert summary(folder_of(made, name))["state"] == "finished"
    assert len({server.runs[name].config["max_lr"] for name in made.stored.runs}) == 3


def test_stopped_by_hyperband_and_by_the_app(sweep, server, slowly):
    """The process has ended, with status 0, 10 s after the request has reached it. From the agent
    that is when the server told the agent. W&B's client asks only every 15 s whether the app's
    button was pressed: there it is when the client told the run, and the server's word is 15 s
    older at most.
    """
    made = sweep(epochs=40)
    # An exit status other than 0 would end the agent, and it would say so.
    agent = made.agent("--count", "2", "--max-consecutive-failed-runs", "1")
    for number in (0, 1):
        made.until(lambda number=number: made.epochs(number) >= 1)
        run, process = made.run(number), training_in(made.folder)
        if number == 0:
            made.stored.to_stop.add(run.name)  # the agent sends SIGTERM at its next heartbeat
        else:
            run.stop_asked = True
        made.until(lambda process=process: process not in working_in(made.folder), 35)
        ended_at = time.monotonic()
        reached_at = float((made.folder / "slow" / run.name).read_text())
        assert run.told_at < reached_at < ended_at
        assert ended_at - (run.told_at, reached_at)[number] < 10
        assert ended_at - run.told_at < (10, 25)[number]
        folder = folder_of(made, run.name)
        assert run.exit_code == 0
        assert summary(folder)["state"] == run.summary["state"] == "stopped"
        rows = len(history_lines(folder)) - 1
        assert rows == made.epochs(number) < 40
        assert run.summary["best_val_acc"] == summary(folder)["best_val_acc"]
    made.until(lambda: agent.poll() is not None, 30)
    assert agent.returncode == 0
    assert "consecutive failed runs" not in made.text()


def test_preempted_and_handed_out_again_with_the_same_id(sweep, server, slowly, start, tmp_path):
    made = sweep(epochs=3)
    agent = made.agent("-f", "--count", "2")  # the preempted run counts, too
    made.until(lambda: made.epochs(0) >= 1)
    agent.send_signal(signal.SIGUSR1)  # as a batch system before it takes the machine
    made.until(lambda: made.run(0).exit_code == 143, 30)
    made.until(lambda: made.run(0).exit_code == 0, 60)
    assert made.stored.runs == [made.run(0).name]
    folder = folder_of(made, made.run(0).name)
    assert summary(folder)["state"] == "finished"
    given = {key: one["value"] for key, one in made.stored.arguments[made.run(0).name].items()}
    recipe = REPO / "recipes" / "best.yaml"  # as in the sweep's command
    undisturbed = start(tmp_path / "undisturbed", config=recipe, **given)
    assert undisturbed.wait() == 0, undisturbed.text
    assert_same_bits(folder, undisturbed.folder)
    made.until(lambda: agent.poll() is not None, 30)
