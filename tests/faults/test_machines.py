"""Machines that are not like ours: containers with little of what a machine has, file systems
without locks, a Python that starts its workers otherwise, a W&B client that cannot start.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import data
import locks
from cli import Mistake
from conftest import REPO
from loader import SMALL_BYTES, MeasuringOrder, TrainingOrder, check_shared_memory
from pool import cores, quota
from ranks import Ranks
from runs import FAST, Run, history, summary

APART = ("-mpf", "--mount-proc", "--kill-child")
TOO_LONG_S = 120
NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def apart(
    shapes_dir: Path, folder: Path, before: str = "", *flags: str, program: tuple = ("train.py",)
) -> subprocess.Popen:
    """train.py in namespaces of its own, as in a container; `before` is done by its shell."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-mpf", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces (root), as containers have them")
    given = ["--dataset=shapes", f"--data_dir={shapes_dir}", f"--output_dir={folder / 'runs'}"]
    given += ["--run_id=run", "--image_size=16", "--model=small", "--batch_size=16", *flags]
    command = [sys.executable, *program, *given]
    process = subprocess.Popen(
        [unshare, *APART, "sh", "-c", f'{before} exec "$@"', "sh", *command],
        cwd=REPO,
        env={**os.environ, **FAST, "HOME": str(folder), "WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    late = threading.Timer(TOO_LONG_S, process.kill)
    late.daemon = True
    late.start()
    return process


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
def test_shared_memory_that_others_fill_ends_the_run_and_hangs_it_not(shapes_dir, tmp_path):
    """A worker that cannot hand over its batch ends; as it comes torch waits for it for ever."""
    little = "mount -t tmpfs -o size=256k tmpfs /dev/shm &&"
    late = "import loader, train, cli; loader.check_shared_memory = lambda *_: None; "
    late += "cli.run(train.command)"
    process = apart(shapes_dir, tmp_path, little, "--workers=2", program=("-c", late))
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert "cannot hand a batch over: " in text and "No space left" in text
    assert "error: " in text and "Traceback" not in text
    assert summary(tmp_path / "runs/run")["state"] == "failed"


@pytest.mark.parametrize(
    ("order", "images"),
    [
        (TrainingOrder(np.arange(100), 32, 0, Ranks()), 32),
        (TrainingOrder(np.arange(100), 4096, 0, Ranks()), 100),
        (TrainingOrder(np.arange(100), 32, 0, Ranks(0, 8, 0, 8)), 4),
        (MeasuringOrder(np.arange(100), 32, Ranks(0, 8, 0, 8)), 32),
    ],
)
def test_what_shared_memory_is_asked_for(order, images, monkeypatch):
    """What there can be at a time, not more; nothing where it has no limit."""
    batches = min(6, len(order)) * order.ranks.local_world
    needed = batches * (images * 10_000 + SMALL_BYTES)
    for free, enough in ((needed, True), (needed - 1, False)):
        room = SimpleNamespace(total=2**40, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, room=room: room)
        with contextlib.nullcontext() if enough else pytest.raises(Mistake, match="workers=2"):
            check_shared_memory(10_000, order, workers=2)
    unlimited = SimpleNamespace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: unlimited)
    check_shared_memory(10_000, order, workers=2)


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


def test_workers_start_where_python_would_have_a_server_start_them(start, tmp_path):
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
    # A trial has the sweep's parameters without it, too.
    given = tmp_path / "given.yaml"
    given.write_text("max_lr:\n  value: 0.02\n")
    env = {"WANDB_MODE": "offline", "WANDB_SWEEP_PARAM_PATH": str(given)}
    trial = start(tmp_path / "trial", patch=patch, epochs=1, env=env)
    assert trial.wait() == 0, trial.text
    assert yaml.safe_load((trial.folder / "config.yaml").read_text())["max_lr"] == 0.02


@pytest.mark.fault("W&B: its service is gone")
def test_a_service_that_is_gone_before_the_run_begins(start, tmp_path):
    """The client ends the whole process with its service's status."""
    patch = """
import wandb
real, real_teardown = wandb.init, wandb.teardown
def init(*, mode=None, **named):
    if mode != "offline":
        raise wandb.errors.CommError("no service")
    return real(mode=mode, **named)
def teardown(*_):
    real_teardown()
    raise SystemExit(7)
wandb.init, wandb.teardown = init, teardown
"""
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    run = start(tmp_path, patch=patch, epochs=1, env=env)
    assert run.wait() == 0, run.text
    assert "(no service): this run is tracked offline" in run.text
    assert "W&B: its service has failed (7)" in run.text
    assert summary(run.folder)["state"] == "finished"


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
    time.sleep(4)
    assert not run.ended
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert not (run.folder / "summary.json").exists()
    again = start(tmp_path)
    assert again.wait() == 0, again.text
    assert history(again.folder) == history(undisturbed)


SLOWLY_DECODED = """
import data, pathlib, time
real = data.decode_files
def slowly(*arguments):
    for chunk in real(*arguments):
        (pathlib.Path(os.environ["HOME"]) / "here").touch()
        time.sleep(1)
        yield chunk
data.decode_files = slowly
"""


def signalled_while_decoding(number: int, start, shapes_dir: Path, home: Path, **env: str) -> Run:
    shutil.copytree(shapes_dir, home / "data", ignore=shutil.ignore_patterns(".cache"))
    run = start(home, patch=SLOWLY_DECODED, data_dir=home / "data", env=env)
    run.until((home / "here").exists)
    run.signal(number)
    return run


@pytest.mark.fault("a signal while images are decoded")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_images_are_decoded(number, status, start, shapes_dir, tmp_path):
    run = signalled_while_decoding(number, start, shapes_dir, tmp_path)
    assert run.wait() == status, run.text
    assert "before its beginning" in run.text and "Traceback" not in run.text
    assert not (run.folder / "config.yaml").exists()
    assert not list((tmp_path / "data" / ".cache").glob("shapes-*"))


@pytest.mark.fault("a signal while images are decoded")
def test_a_stop_while_images_are_decoded_has_its_summary(start, shapes_dir, tmp_path):
    (tmp_path / "given.yaml").write_text("max_lr:\n  value: 0.02\n")
    given = {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "given.yaml")}
    run = signalled_while_decoding(signal.SIGTERM, start, shapes_dir, tmp_path, **given)
    assert run.wait() == 0, run.text
    assert summary(run.folder)["state"] == "stopped"


@pytest.mark.fault("a signal while images are decoded")
def test_a_signal_to_all_while_a_pool_decodes(start, shapes_dir, tmp_path):
    """Who decodes dies of it."""
    patch = "import decode; decode.FEW = 1; decode.CHUNK = 10" + SLOWLY_DECODED
    shutil.copytree(shapes_dir, tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))
    run = start(tmp_path, patch=patch, data_dir=tmp_path / "data")
    run.until((tmp_path / "here").exists)
    run.signal_group(signal.SIGTERM)
    assert run.wait() == 143, run.text
    assert "Traceback" not in run.text


@pytest.mark.slow
@pytest.mark.fault("a signal while images are decoded")
def test_a_stop_of_all_before_a_run_goes_on_leaves_its_summary(start, shapes_dir, tmp_path):
    patch = "import decode; decode.FEW = 1; decode.CHUNK = 10" + SLOWLY_DECODED
    shutil.copytree(shapes_dir, tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))
    (tmp_path / "given.yaml").write_text("max_lr:\n  value: 0.02\n")
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    before = '{"state": "preempted", "epochs": 3, "best_val_acc": 0.5}'
    (folder / "summary.json").write_text(before)
    env = {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "given.yaml")}
    run = start(tmp_path, patch=patch, data_dir=tmp_path / "data", env=env)
    run.until((tmp_path / "here").exists)
    run.signal_group(signal.SIGTERM)
    assert run.wait() == 0, run.text
    assert (folder / "summary.json").read_text() == before
    assert "Traceback" not in run.text


@pytest.mark.fault("file system: no locks")
def test_without_locks_two_build_a_cache_and_neither_spoils_the_others(data_dir, monkeypatch):
    monkeypatch.setattr(locks, "missing", True)
    real = data._decode_layout

    def slower(found, images_npy, check):
        monkeypatch.setattr(data, "_decode_layout", real)
        told = real(found, images_npy, check)
        data.get("tiny-imagenet", data_dir)  # another builds it meanwhile
        return told

    monkeypatch.setattr(data, "_decode_layout", slower)
    monkeypatch.setattr(locks, "take", lambda *_: True)
    _, cache = data.get("tiny-imagenet", data_dir)
    assert (cache.images.reshape(len(cache.images), -1).std(axis=1) > 0).all()
    assert [path.name.count("unfinished") for path in (data_dir / ".cache").glob("*-v*")] == [0]


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
