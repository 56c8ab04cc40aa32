"""Machines that are not like ours: containers with little of what a machine has, file systems
without locks, a Python that starts its workers otherwise, a W&B client that cannot start.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import locks
from conftest import REPO
from pool import cores, quota
from runs import FAST, history, summary

NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def apart(shapes_dir: Path, folder: Path, before: str = "", *flags: str) -> subprocess.Popen:
    """train.py in namespaces of its own, as in a container; `before` is done by its shell."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-mpf", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces (root), as containers have them")
    given = ["--dataset=shapes", f"--data_dir={shapes_dir}", f"--output_dir={folder / 'runs'}"]
    given += ["--run_id=run", "--image_size=16", "--model=small", "--batch_size=16", *flags]
    command = [sys.executable, str(REPO / "train.py"), *given]
    return subprocess.Popen(
        [unshare, "-mpf", "--mount-proc", "sh", "-c", f'{before} exec "$@"', "sh", *command],
        env={**os.environ, **FAST, "HOME": str(folder), "WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.fault("container: first process")
def test_the_first_process_of_a_container_ends_with_the_status_of_its_signal(shapes_dir, tmp_path):
    """No signal kills it; it has to leave by itself."""
    process = apart(shapes_dir, tmp_path, "", "--epochs=500")
    inside = None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            inside = int(children.split()[0])
            os.kill(inside, signal.SIGTERM)
            break
    text = process.stdout.read()
    assert process.wait(timeout=40) == 143, text
    assert inside and "Traceback" not in text
    assert summary(tmp_path / "runs/run")["state"] == "preempted"


@pytest.mark.fault("container: little shared memory")
def test_too_little_shared_memory_is_told_before_anything_begins(shapes_dir, tmp_path):
    little = "mount -t tmpfs -o size=256k tmpfs /dev/shm &&"
    process = apart(shapes_dir, tmp_path, little, "--workers=2")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert "error: workers=2: their batches of 16 images" in text
    assert not (tmp_path / "runs/run/config.yaml").exists()


@pytest.mark.fault("container: little shared memory")
def test_shared_memory_that_others_fill_ends_the_run_and_hangs_it_not(start, tmp_path, monkeypatch):
    """A worker that cannot hand over a batch says so to nobody; torch would wait for ever."""
    patch = """
import loader, multiprocessing.queues as queues
loader.PATIENCE_S = 3
feed = queues.Queue._feed
def hand_nothing_over(buffer, *others):
    import time
    time.sleep(1000)
queues.Queue._feed = staticmethod(hand_nothing_over)
"""
    run = start(tmp_path, patch=patch, workers=1)
    assert run.wait() == 1, run.text
    assert "error: " in run.text and "timed out after 3 seconds" in run.text
    assert "--workers" in run.text and "Traceback" not in run.text
    assert summary(run.folder)["state"] == "failed"


@pytest.mark.fault("a worker killed")
def test_a_worker_that_is_killed_is_told_in_a_line(start, tmp_path):
    patch = """
import loader, os, signal
real = loader.CachedImages.__getitem__
def die(self, request):
    if request.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, request)
loader.CachedImages.__getitem__ = die
"""
    run = start(tmp_path, patch=patch, workers=1)
    assert run.wait() == 1, run.text
    assert "error: " in run.text and ": DataLoader worker (pid" in run.text
    assert "Traceback" not in run.text
    assert len(history(run.folder)) == 1


def test_workers_start_where_python_would_have_a_server_start_them(start, tmp_path, undisturbed):
    """Python 3.14's own choice."""
    patch = "import multiprocessing; multiprocessing.set_start_method('forkserver', force=True)"
    run = start(tmp_path, patch=patch, workers=2, epochs=1)
    assert run.wait() == 0, run.text


@pytest.mark.fault("file system: no locks")
def test_where_there_are_no_locks_a_run_says_so_once_and_goes_on(start, tmp_path):
    run = start(tmp_path, patch=NO_LOCKS, epochs=1)
    assert run.wait() == 0, run.text
    assert run.text.count("this file system has no locks (No locks available)") == 1
    assert summary(run.folder)["state"] == "finished"


def test_a_lock_that_is_looked_at_is_taken_a_moment_later(tmp_path):
    with open(tmp_path / "lock", "w") as held, open(tmp_path / "lock", "w") as wanted:
        assert locks.take(held)
        assert not locks.take(wanted)
        threading.Timer(locks.PAUSE_S, held.close).start()
        assert locks.take(wanted, tries=100)


@pytest.mark.fault("W&B: its service cannot start")
def test_a_client_that_cannot_start_costs_the_run_nothing(start, tmp_path):
    patch = """
import wandb
real = wandb.init
def init(*, mode=None, **named):
    if mode != "disabled":
        raise wandb.errors.CommError("no room in /tmp")
    return real(mode=mode, **named)
wandb.init = init
"""
    run = start(tmp_path / "alone", patch=patch, epochs=1, env={"WANDB_MODE": "offline"})
    assert run.wait() == 0, run.text
    assert "W&B cannot be started (no room in /tmp): this run is not tracked" in run.text
    assert summary(run.folder)["state"] == "finished"
    # Without the sweep's parameters it would be another run.
    given = tmp_path / "given.yaml"
    given.write_text("max_lr:\n  value: 0.02\n")
    env = {"WANDB_MODE": "offline", "WANDB_SWEEP_PARAM_PATH": str(given)}
    trial = start(tmp_path / "trial", patch=patch, epochs=1, env=env)
    assert trial.wait() == 1, trial.text
    assert "error: W&B cannot be started" in trial.text and "Traceback" not in trial.text


@pytest.mark.fault("W&B: its service is gone")
def test_a_service_that_is_gone_is_said_once(start, tmp_path):
    patch = """
import tracking, wandb
tracking.PAUSE_S = 0.1
def fail(self, *_, **__):
    raise ConnectionResetError("the service is gone")
wandb.Run.log = fail
"""
    run = start(tmp_path, patch=patch, epochs=2)
    assert run.wait() == 0, run.text
    assert run.text.count("W&B: log failed, the run goes on") == 1
    assert "W&B: log failed 16 times (ConnectionResetError)" in run.text  # 14 steps, 2 epochs


@pytest.mark.fault("Ctrl-C twice")
def test_who_insists_on_ctrl_c_gets_it_at_once(start, tmp_path, undisturbed):
    patch = """
import learner, pathlib, time
real = learner.Learner.train_step
def stuck(self, batch):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    until = time.monotonic() + 100
    while time.monotonic() < until:
        time.sleep(0.1)
    return real(self, batch)
learner.Learner.train_step = stuck
"""
    run = start(tmp_path, patch=patch)
    run.until((tmp_path / "here").exists)
    run.signal(signal.SIGINT)
    run.signal(signal.SIGINT)  # as torchrun and a terminal send it together
    time.sleep(2.5)
    assert not run.ended
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert not (run.folder / "summary.json").exists()
    again = start(tmp_path)
    assert again.wait() == 0, again.text
    assert history(again.folder) == history(undisturbed)


@pytest.mark.fault("a signal while images are decoded")
@pytest.mark.parametrize(
    ("number", "status", "in_sweep"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGTERM, 0, True)],
)
def test_a_signal_while_images_are_decoded(number, status, in_sweep, start, shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))
    patch = """
import data, pathlib, time
real = data.decode_files
def slowly(*arguments):
    for chunk in real(*arguments):
        (pathlib.Path(os.environ["HOME"]) / "here").touch()
        time.sleep(1.5)
        yield chunk
data.decode_files = slowly
"""
    env = {}
    if in_sweep:
        (tmp_path / "given.yaml").write_text("max_lr:\n  value: 0.02\n")
        env["WANDB_SWEEP_PARAM_PATH"] = str(tmp_path / "given.yaml")
    run = start(tmp_path, patch=patch, data_dir=tmp_path / "data", env=env)
    run.until((tmp_path / "here").exists)
    run.signal(number)
    assert run.wait() == status, run.text
    assert "before its beginning" in run.text and "Traceback" not in run.text
    assert not (run.folder / "config.yaml").exists()
    assert not list((tmp_path / "data" / ".cache").glob("shapes-*"))


def test_the_share_of_the_cores_that_a_container_may_use(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "pod" / "box").mkdir(parents=True)
    own.write_text("1:name=systemd:/elsewhere\n0::/pod/box\n")
    assert quota(own, root) == math.inf
    (root / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    assert quota(own, root) == math.inf
    (root / "pod" / "cpu.max").write_text("150000 100000\n")
    assert quota(own, root) == 1.5
    (root / "pod" / "box" / "cpu.max").write_text("50000 100000\n")
    assert quota(own, root) == 0.5
    assert quota(tmp_path / "nowhere", root) == math.inf
    monkeypatch.setattr("pool.quota", lambda: 0.5)
    assert cores() == 1
    monkeypatch.setattr("pool.quota", lambda: math.inf)
    assert cores() >= 1


def test_a_closed_output_is_no_failure(tmp_path):
    command = f'exec "{sys.executable}" data.py shapes --data_dir="{tmp_path}" >&-'
    done = subprocess.run(["sh", "-c", command], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
