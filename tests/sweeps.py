"""Sweeps on the stand-in server and who works on them, for the tests; and what arrived there."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from procs import working_in
from wandb_server import ENTITY, WandbServer

from conftest import REPO
from runs import TIMEOUT_S, history_lines, summary

BIN = Path(sys.executable).parent
SLOW_STEPS = "0.3"  # seconds, where a run is to be interrupted


class Sweep:
    """A sweep on the server and the agents that work on it, in a folder of its own."""

    def __init__(self, folder: Path, server: WandbServer, data_dir: Path, command=(), **changed):
        self.folder, self.server, self.agents = folder, server, []
        self.env = {**os.environ, **server.env, "HOME": str(folder)}
        self.env["PATH"] = f"{BIN}:{os.environ['PATH']}"
        self.env |= {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "OMP_NUM_THREADS": "1"}
        config = yaml.safe_load((REPO / "sweep.yaml").read_text())
        fixed = {"dataset": "shapes", "data_dir": str(data_dir), "model": "small"}
        fixed |= {"image_size": 16, "batch_size": 16, "workers": 0, "mistakes": 4, "epochs": 2}
        for key, value in {**fixed, **changed}.items():
            config["parameters"][key] = {"value": value}
        config["program"] = str(REPO / "train.py")
        words = command or config["command"]
        config["command"] = [word.replace("=recipes/", f"={REPO}/recipes/") for word in words]
        config["run_cap"] = 3
        (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
        done = self.wandb("sweep", "sweep.yaml")
        (self.stored,) = server.sweeps.values()
        assert f"wandb agent {ENTITY}/tinysweep/{self.stored.name}" in done.stderr

    def wandb(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BIN / "wandb", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )

    def agent(self, *arguments: str) -> subprocess.Popen:
        log = open(self.folder / f"agent{len(self.agents)}.txt", "w")
        path = f"{ENTITY}/tinysweep/{self.stored.name}"
        command = [BIN / "wandb", "agent", *arguments, path]
        agent = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
        )
        self.agents.append(agent)
        return agent

    def text(self) -> str:
        return "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("agent*.txt")))

    def until(self, happened, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def end(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()

    def run(self, number: int):
        name = f"{self.stored.name}-run{number}"
        return self.server.runs.get(name)

    def epochs(self, number: int) -> int:
        run = self.run(number)
        return sum("val/acc" in row for row in run.history) if run else 0


def folder_of(sweep: Sweep, name: str) -> Path:
    return sweep.folder / "runs" / name


def launch(made: Sweep, *arguments: str) -> subprocess.Popen:
    """`python sweep.py agents` for a sweep; it ends with the test, like its agents."""
    log = open(made.folder / "agents.txt", "a")
    path = f"{ENTITY}/tinysweep/{made.stored.name}"
    launcher = subprocess.Popen(
        [sys.executable, REPO / "sweep.py", "agents", path, *arguments],
        cwd=made.folder,
        env=made.env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    made.agents.append(launcher)
    return launcher


def training_in(folder: Path) -> int:
    """The one process of train.py that works in a folder."""
    (pid,) = (pid for pid, line in working_in(folder).items() if "train.py" in line)
    return pid


def assert_rows(rows: list[dict], folder: Path) -> None:
    """The epochs among the rows that were logged are those of the run on disk."""
    lines = [line.split(",") for line in history_lines(folder)]
    told = [dict(zip(lines[0], map(float, line), strict=True)) for line in lines[1:]]
    epochs = [row for row in rows if "val/acc" in row]
    assert [{key: row[key] for key in lines[0]} for row in epochs] == told


def assert_whole(server: WandbServer, run, folder: Path) -> None:
    """What the server has of a run is what the run has on disk."""
    assert_rows(run.history, folder)
    panels = [row["val/gradcam"] for row in run.history if "val/gradcam" in row]
    assert len(panels) == len(history_lines(folder)) - 1
    for picture in panels:
        assert len(run.files[picture["path"]]) == picture["size"]
    assert run.summary["best_val_acc"] == summary(folder)["best_val_acc"]
    assert run.summary["state"] == "finished"
    (table,) = (row["val/mistakes"] for row in run.history if "val/mistakes" in row)
    kept = [a for a in server.artifacts.values() if a.run == run.name]
    (model,) = (a for a in kept if a.type == "model")
    (pictures,) = (a for a in kept if a.type == "run_table")
    assert model.name == f"model-{run.name}"
    assert set(model.aliases) == {"best", "latest"}
    assert model.files["best.pt"] == (folder / "best.pt").read_bytes()
    assert model.committed
    assert pictures.committed
    rows = json.loads(pictures.files["val/mistakes.table.json"])["data"]
    assert len(rows) == table["nrows"] == 4
    for row in rows:
        for picture in row[:3]:
            content = pictures.files[picture["path"]]
            assert hashlib.sha256(content).hexdigest() == picture["sha256"]


SLOWLY = """
import os, sys, time
from pathlib import Path

def slow_down():
    import ending, learner
    step, ask = learner.Learner.train_step, ending.Ending.ask
    def slow(self, batch):
        time.sleep(SECONDS)
        return step(self, batch)
    def noted(self, request):
        if self.request is None:
            note = Path(__file__).with_name(os.environ["WANDB_RUN_ID"])
            unfinished = note.with_suffix(f".{os.getpid()}")  # each process its own
            unfinished.write_text(str(time.monotonic()))
            unfinished.rename(note)
        ask(self, request)
    learner.Learner.train_step, ending.Ending.ask = slow, noted

class Hook:
    def find_spec(self, name, *_):
        if name == "measures":
            sys.meta_path.remove(self)
            slow_down()

if sys.argv[0].endswith("train.py"):
    sys.meta_path.insert(0, Hook())
"""
