"""W&B's ways to end a run, and W&B that cannot be reached, with the real client."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import assert_whole
from wandb_server import WandbServer

from runs import ANNOUNCED, PAUSES, TIMEOUT_S, Run, exit_code, offline_record, summary

SWEEP = "wandb_version: 1\nmax_lr:\n  value: 0.02\n"


@pytest.mark.fault("W&B: no login")
def test_without_a_login_the_run_is_offline_and_says_how_to_hand_it_over(start, tmp_path):
    run = start(tmp_path, epochs=1)
    assert run.wait() == 0
    (line,) = (line for line in run.text.splitlines() if line.startswith("W&B: offline"))
    folder = line.split("`wandb sync ")[1].rstrip("`")
    assert Path(folder).is_dir()


def epochs_at(server: WandbServer) -> list[int]:
    return sorted(row["epoch"] for row in server.runs["run"].history if "val/acc" in row)


def after_an_epoch(start, folder: Path, **env: str) -> Run:
    """A run of two epochs, in its second one."""
    run = start(folder, epochs=2, patch=PAUSES["training"], env=env)
    run.until_epoch(1)
    return run


@pytest.mark.slow
@pytest.mark.fault("kill -9, then all epochs at W&B")
def test_a_killed_run_that_went_on_names_all_that_is_to_be_handed_over(start, tmp_path):
    """What W&B's client had not written yet is logged again."""
    slow = PAUSES["training"]
    run = start(tmp_path / "my runs", epochs=3, patch=slow)
    run.until_epoch(1)
    run.kill()
    again = start(tmp_path / "my runs", epochs=3, patch=slow)
    again.until_epoch(2)
    time.sleep(1.5)  # now it has; the third epoch takes longer
    again.kill()
    again = start(tmp_path / "my runs", epochs=3)
    assert again.wait() == 0, again.text
    (call,) = re.findall("hand the run over later with `(.*)`", again.text)
    with WandbServer() as server:
        env = {**server.env, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/bin"}
        done = subprocess.run(["sh", "-c", call], cwd=tmp_path, env=env, timeout=TIMEOUT_S)
        assert done.returncode == 0
        assert epochs_at(server) == [1, 2, 3]


@pytest.mark.fault("kill -9, then all epochs at W&B")
@pytest.mark.parametrize("sent", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_killed_run_that_goes_on_sends_what_was_not_sent(start, tmp_path, sent):
    with WandbServer() as server:
        env = {**server.env, "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1" if sent else "3600"}
        run = after_an_epoch(start, tmp_path, **env)
        if sent:
            run.until(lambda: epochs_at(server) == [1] or run.ended)
        run.kill()
        assert epochs_at(server) == ([1] if sent else [])
        again = start(tmp_path, epochs=2, env=server.env)
        assert again.wait() == 0, again.text
        assert epochs_at(server) == [1, 2]


@pytest.mark.slow
def test_what_did_not_arrive_at_the_end_of_a_start_is_sent_by_the_next(start, tmp_path):
    """As of a preempted run that was killed while it waited for the server."""
    with WandbServer() as server:
        run = after_an_epoch(start, tmp_path, **server.env)
        run.signal(signal.SIGUSR1)
        assert run.wait() == 143, run.text
        stored = server.runs["run"]
        assert epochs_at(server) == [1]
        stored.history = [row for row in stored.history if "val/acc" not in row]
        del stored.summary["epoch"]
        again = start(tmp_path, epochs=2, env=server.env)
        assert again.wait() == 0, again.text
        assert epochs_at(server) == [1, 2]


@pytest.mark.slow
def test_epochs_of_a_start_online_are_not_in_the_record_of_one_offline(start, tmp_path):
    with WandbServer() as server:
        run = after_an_epoch(start, tmp_path, **server.env)
        run.until(lambda: epochs_at(server) == [1] or run.ended)
        run.kill()
        assert epochs_at(server) == [1]
    again = start(tmp_path, epochs=2)
    assert again.wait() == 0, again.text
    rows = [r["history"]["item"] for r in offline_record(again.folder) if r["type"] == "history"]
    assert [row["epoch"] for row in rows if "val/acc" in row] == [2]


@pytest.mark.slow
def test_an_online_run_names_the_part_that_was_tracked_offline(start, tmp_path):
    run = after_an_epoch(start, tmp_path)
    run.signal(signal.SIGUSR1)
    assert run.wait() == 143, run.text
    (record,) = (run.folder / "wandb").glob("offline-run-*")
    with WandbServer() as server:
        again = start(tmp_path, epochs=2, env=server.env)
        assert again.wait() == 0, again.text
        assert epochs_at(server) == [2]
    assert f"tracked offline; hand that over with `wandb sync {record}`" in again.text


def test_w_and_b_stop_keeps_the_score(start, tmp_path):
    # The client calls this function from a thread of its own when the server's flag is up.
    patch = (
        PAUSES["training"]
        + """
import tracking, threading
real_settings = tracking.Tracker._settings
def settings(self, stop):
    def later():
        while not (pathlib.Path(os.environ["HOME"]) / "here").exists():
            time.sleep(0.05)
        made.stop_fn()
    made = real_settings(self, stop)
    threading.Thread(target=later, daemon=True).start()
    return made
tracking.Tracker._settings = settings
"""
    )
    run = start(tmp_path, patch=patch)
    assert run.wait() == 0, run.text
    assert summary(run.folder)["state"] == "stopped"
    assert exit_code(run.folder) == 0


def test_sigterm_with_the_agent_gone_is_a_preemption(start, tmp_path):
    """The machine goes away: the agent has the signal, too, and does not outlive it."""
    (tmp_path / "parameters.yaml").write_text(SWEEP)
    env = {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "parameters.yaml")}
    # The run moves into a child; its parent, in the agent's place, dies of the same signal.
    patch = (
        PAUSES["training"]
        + """
import pathlib, signal
child = os.fork()
if child:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.waitpid(child, 0)
    os._exit(0)
(pathlib.Path(os.environ["HOME"]) / "child").write_text(str(os.getpid()))
"""
    )
    run = start(tmp_path, patch=patch, env=env)
    run.until_here()
    run.signal_group(signal.SIGTERM)
    assert run.wait() == 143  # the one in the agent's place
    run.until(lambda: (run.folder / "summary.json").exists())
    assert summary(run.folder)["state"] == "preempted"
    child = int((tmp_path / "child").read_text())
    run.until(lambda: not Path(f"/proc/{child}").exists())
    assert exit_code(run.folder) == 143


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("WANDB_BASE_URL", "wandb.mycompany.com", "valid URL"),
        ("WANDB_MODE", "ofline", "'online', 'offline'"),
    ],
)
def test_a_setting_that_the_client_would_refuse(start, tmp_path, key, value, words):
    run = start(tmp_path, env={key: value})
    assert run.wait() == 2
    (line,) = run.text.splitlines()
    assert line.startswith(f"error: W&B's client refuses {key}: ")
    assert words in line
    assert not run.folder.exists()


KEYS = {"a key": "0" * 40, "a key of no valid form": "secret"}


@pytest.mark.parametrize("project", ["me/tinysweep", "50%", "x" * 129])
def test_a_project_that_w_and_b_would_refuse(start, tmp_path, project):
    run = start(tmp_path, env={"WANDB_PROJECT": project})
    assert run.wait() == 2
    (line,) = run.text.splitlines()
    assert line.startswith(f"error: WANDB_PROJECT='{project[:5]}")
    assert not run.folder.exists()


@pytest.mark.fault("W&B: away at the start")
@pytest.mark.parametrize("key", KEYS)
def test_a_server_that_is_away_at_the_start_costs_the_run_nothing(start, tmp_path, key):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        env = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEYS[key]}
        patch = "import tracking; tracking.INIT_TIMEOUT_S = 4"
        run = start(tmp_path, patch=patch, env=env, epochs=1)
        assert run.wait() == 0, run.text
    assert "W&B cannot be reached" in run.text
    assert "wandb sync" in run.text
    assert "Traceback" not in run.text
    assert KEYS[key] not in run.text
    assert summary(run.folder)["state"] == "finished"
    assert exit_code(run.folder) == 0


@pytest.mark.fault("W&B: an outage of 20 s")
@pytest.mark.parametrize(
    "where",
    [
        "log_mistakes",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("log_picture", "finish", "log_model")),
    ],
)
def test_an_outage_of_20_seconds_loses_nothing(start, server, tmp_path, where):
    run = start(tmp_path, patch=ANNOUNCED.replace("WHERE", where), env=server.env, mistakes=4)
    run.timeout_s = 120
    run.until_here()
    server.go_away(20)
    assert run.wait() == 0, run.text
    stored = server.runs["run"]
    assert stored.exit_code == 0
    assert_whole(server, stored, run.folder)


@pytest.mark.fault("W&B: a wrong key")
def test_a_wrong_key_is_said_and_the_run_is_kept_offline(start, server, tmp_path):
    env = {**server.env, "WANDB_API_KEY": "1" * 40}
    run = start(tmp_path, patch="import tracking; tracking.INIT_TIMEOUT_S = 4", env=env, epochs=1)
    run.timeout_s = 90
    assert run.wait() == 0, run.text
    assert "W&B cannot be reached" in run.text
    assert "wandb sync" in run.text
    assert "1" * 40 not in run.text
    assert summary(run.folder)["state"] == "finished"
