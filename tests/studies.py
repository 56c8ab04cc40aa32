"""Sweeps without a server, with a stand-in for train.py, for the tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from procs import working_in

from conftest import REPO
from runs import history_lines

STUB = REPO / "tests" / "stub.py"
TIMEOUT_S = 90


class Offline:
    """`python sweep.py run` in a folder of its own."""

    def __init__(self, folder: Path, **changed):
        self.folder, self.dir, self.drivers = folder, folder / "sweeps" / "s", []
        sweep = {
            "program": str(STUB),
            "name": "s",
            "method": "random",
            "metric": {"name": "val/acc", "goal": "maximize"},
            "parameters": {
                "max_lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 10.0},
                "aug_strength": {"min": 0.0, "max": 2.0},
                "epochs": {"value": 4},
            },
        }
        for key, value in changed.items():
            sweep[key] = {**sweep[key], **value} if key == "parameters" else value
        (folder / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        log = open(self.folder / f"driver{len(self.drivers)}.txt", "w")
        driver = subprocess.Popen(
            [sys.executable, REPO / "sweep.py", *(arguments or ("run", "s.yaml"))],
            cwd=self.folder,
            env={**os.environ, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.drivers.append(driver)
        return driver

    def run(self, *arguments: str, **env: str) -> str:
        """To its end; what it printed."""
        driver = self.start("run", "s.yaml", *arguments, **env)
        assert driver.wait(TIMEOUT_S) == 0, self.text()
        return self.text()

    def text(self, number: int = -1) -> str:
        return (self.folder / f"driver{number % len(self.drivers)}.txt").read_text()

    def until(self, happened) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not happened():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def journal(self) -> dict[int, dict]:
        """The trials by their numbers, read from the file itself: parameters, values, ends."""
        trials: dict[int, dict] = {}
        for line in (self.dir / "study.journal").read_text().splitlines():
            told = json.loads(line)
            if told["op_code"] == 4:
                trials[len(trials)] = {"told": []}
            elif "trial_id" in told:
                trial = trials[told["trial_id"]]
                trial |= told.get("user_attr", {})
                if told["op_code"] == 6 and told["state"] != 0:
                    trial["told"].append(told["values"])
        return trials

    def starts(self) -> list[list[str]]:
        path = self.folder / "starts.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*-*"))

    def rows(self) -> list[int]:
        """How many epochs each run has."""
        return [len(history_lines(run)) - 1 for run in self.runs()]

    def processes(self) -> list[int]:
        return [pid for pid, line in working_in(self.folder).items() if "stub.py" in line]
