"""Training runs as processes, for the tests: start, signal, wait, and read what they left."""

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from conftest import REPO

TIMEOUT_S = 40
IMPORTS_S = 300
FAST = {  # W&B's waiting times, turned down
    "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
    "WANDB_SILENT": "true",
    "OMP_NUM_THREADS": "1",
}
TIMES = ("time/images_per_s", "time/epoch_s", "time/loader_wait")

# A run that stands still where it is to be signalled, and says so by a file.
PAUSES = {
    "loading": """
import pathlib, record, time
real_load = record.load_data
def slow(*arguments, **named):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(1)
    return real_load(*arguments, **named)
record.load_data = slow
""",
    "checkpoint": """
import checkpoint, io, pathlib, time
real_save = checkpoint.save
def slow(state, file):
    whole = io.BytesIO()
    real_save(state, whole)
    half = len(whole.getvalue()) // 2
    file.write(whole.getvalue()[:half])
    file.flush()
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(0.5)
    file.write(whole.getvalue()[half:])
checkpoint.save = slow
""",
    "finish": """
import pathlib, time, tracking
real_finish = tracking.Tracker.finish
def slow(self, exit_code):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(0.5)
    real_finish(self, exit_code)
    time.sleep(0.5)
tracking.Tracker.finish = slow
""",
    "training": """
import learner, pathlib, time
real = learner.Learner.train_step
def slow(self, batch):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(0.3)
    return real(self, batch)
learner.Learner.train_step = slow
""",
    "evaluation": """
import pathlib, time
real_evaluate = train.evaluate
def slow(learner, batches, looks, check):
    def slowly():
        for batch in batches:
            (pathlib.Path(os.environ["HOME"]) / "here").touch()
            time.sleep(0.5)
            yield batch
    return real_evaluate(learner, slowly(), looks, check)
train.evaluate = slow
""",
    "pictures": """
import mistakes, pathlib, time
real_some = mistakes._explain_some
def slow(*arguments, **named):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(0.7)
    return real_some(*arguments, **named)
mistakes._explain_some = slow
""",
    "ending": """
import training, pathlib, time
real_end = training.Training.end
def slow(self, tracker, check):
    (pathlib.Path(os.environ["HOME"]) / "here").touch()
    time.sleep(1.5)
    return real_end(self, tracker, check)
training.Training.end = slow
""",
}


# A run that says by a file that it comes to one of the Tracker's methods, for the first time.
ANNOUNCED = """
import pathlib, tracking
def announced(name):
    real = getattr(tracking.Tracker, name)
    def call(self, *arguments, **named):
        (pathlib.Path(os.environ["HOME"]) / "here").touch()
        import time; time.sleep(0.5)
        return real(self, *arguments, **named)
    setattr(tracking.Tracker, name, announced_once(call, real))
def announced_once(call, real):
    state = []
    def either(self, *arguments, **named):
        if state:
            return real(self, *arguments, **named)
        state.append(1)
        return call(self, *arguments, **named)
    return either
announced("WHERE")
"""


class Zygote:
    """The process that forks the runs."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, REPO / "tests" / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        self.pids: queue.Queue[int] = queue.Queue()
        self.exits: dict[int, int] = {}
        self.ready = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self.ready.wait(IMPORTS_S), "the process that forks the runs did not come up"

    def _listen(self) -> None:
        for line in self.process.stdout:
            word, *numbers = line.split()
            if word == "pid":
                self.pids.put(int(numbers[0]))
            elif word == "ready":
                self.ready.set()
            elif word == "exit":
                self.exits[int(numbers[0])] = int(numbers[1])

    def start(self, arguments: list[str], env: dict[str, str], output: Path, patch: str) -> int:
        order = {"arguments": arguments, "env": env, "output": str(output), "patch": patch}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.pids.get(timeout=TIMEOUT_S)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


class Run:
    """One process of train.py on a small data set; `folder` is what it leaves."""

    timeout_s = TIMEOUT_S

    def __init__(
        self,
        zygote: Zygote,
        base: Path,
        *arguments: str,
        run_id: str = "run",
        patch: str = "",
        **env: str,
    ):
        self.zygote, self.folder, self.output = zygote, base / "runs" / run_id, base / "output.txt"
        base.mkdir(parents=True, exist_ok=True)
        self.output.unlink(missing_ok=True)
        home = {"HOME": str(base)}
        chosen = [f"--output_dir={base / 'runs'}", f"--run_id={run_id}"] if run_id else []
        chosen += arguments
        self.pid = zygote.start(chosen, {**os.environ, **home, **FAST, **env}, self.output, patch)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status as a shell has it: 128 + N after signal N."""
        self.until(lambda: self.pid in self.zygote.exits)
        status = self.zygote.exits[self.pid]
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        return os.WEXITSTATUS(status)

    def until(self, happened) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"timeout; so far:\n{self.text}"
            time.sleep(0.01)

    def until_here(self) -> None:
        """Where one of the PAUSES is, or ANNOUNCED."""
        here = self.output.parent / "here"
        self.until(lambda: here.exists() or self.ended)

    def until_epoch(self, epoch: int) -> None:
        self.until(lambda: len(history_lines(self.folder)) > epoch or self.ended)

    @property
    def ended(self) -> bool:
        return self.pid in self.zygote.exits

    def signal_group(self, number: int) -> None:
        """As Ctrl-C and batch systems do: the process and all its children."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def history_lines(folder: Path) -> list[str]:
    path = folder / "history.csv"
    return path.read_text().splitlines() if path.exists() else []


def history(folder: Path) -> list[dict[str, str]]:
    """Rows without the times, which differ from run to run."""
    rows = list(csv.DictReader(history_lines(folder)))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def flat(value, name="") -> dict:
    """A checkpoint as one level of name: tensor or number, without the times in its history."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    kept = (flat(one, f"{name}/{key}") for key, one in items if key not in TIMES)
    return {key: one for part in kept for key, one in part.items()}


def assert_same_bits(one: Path, two: Path) -> None:
    """Weights, optimizer, schedule, averages and history of two runs are equal to the last bit."""
    for name in ("last.pt", "best.pt"):
        a, b = (flat(torch.load(folder / name, weights_only=True)) for folder in (one, two))
        for ignored in ("output_dir", "data_dir", "workers"):
            a.pop(f"/config/{ignored}"), b.pop(f"/config/{ignored}")
        assert a.keys() == b.keys()
        for key, value in a.items():
            same = (
                torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
            )
            assert same, f"{name}: {key} differs"
    assert history(one) == history(two)


def exit_code(folder: Path) -> int:
    """What a run told W&B of its end, offline."""
    (end,) = (record["exit"] for record in offline_record(folder) if record["type"] == "exit")
    return end.get("exit_code", 0)


def offline_record(folder: Path) -> list[dict]:
    """What W&B's client wrote for a run, by its own reader; the folder's newest record."""
    newest = max((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", newest]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in text.splitlines()]
