"""One process of a study: how it is called, how it is asked to end, and what its run has left."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from processes import ask_to_save, dies_with_us, heads_below, kill_session
from ranks import GONE
from run_folder import writing

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
ERROR_LINES = 3  # of a failed trial's output, that are kept


@dataclass(frozen=True)
class Job:
    """What is to be run: a trial of the search, or a trial again with another seed."""

    key: str  # names its files in the study's folder, as 007 or 007-seed1
    run_id: str
    parameters: dict[str, Any]
    run: Path  # the run's folder
    epochs: int  # that it is to have

    @property
    def place(self) -> Path:
        """The run's folder as one would type it here."""
        run, here = self.run.resolve(), Path.cwd()
        return run.relative_to(here) if run.is_relative_to(here) else run


def command_of(sweep: Mapping[str, Any], parameters: Mapping[str, Any], file: Path) -> list[str]:
    """The sweep's command with its macros filled in; `file` is where ${args_json_file} goes."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    words = create_sweep_command(list(sweep.get("command") or DEFAULT_COMMAND))
    parts = create_sweep_command_args({"args": {k: {"value": v} for k, v in parameters.items()}})
    parts |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable]}
    parts |= {"program": [sweep["program"]], "args_json_file": [str(file)]}
    if "${args_json_file}" in words:
        with writing(file) as opened:
            opened.write(parts["args_json"][0].encode())
    found = []
    for word in map(str, words):
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        found += parts[macro[1]] if macro else [word]
    return found


class Trial:
    """The process of a job. Its output is appended to `<folder>/<key>.log`."""

    def __init__(self, job: Job, sweep: Mapping[str, Any], folder: Path, env: Mapping[str, str]):
        self.job, self.log = job, folder / f"{job.key}.log"
        self.asked_to_stop = False
        given = folder / f"{job.key}.yaml"
        with writing(given) as file:  # as `wandb agent` writes it
            values = {key: {"value": value} for key, value in job.parameters.items()}
            file.write(yaml.safe_dump({"wandb_version": 1, **values}, sort_keys=False).encode())
        clean = {k: v for k, v in os.environ.items() if k not in ("WANDB_SWEEP_ID", "WANDB_NAME")}
        clean |= {
            "WANDB_MODE": "offline",
            "WANDB_SWEEP_PARAM_PATH": str(given.resolve()),
            "WANDB_RUN_ID": job.run_id,
            "PYTHONUNBUFFERED": "1",
        }
        with open(self.log, "ab") as log:
            self.begins_at = log.tell()  # an earlier process of this job may have written, too
            self.process = subprocess.Popen(
                command_of(sweep, job.parameters, given.with_suffix(".json")),
                env={**clean, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours; we ask it to save its work
                preexec_fn=dies_with_us(),
            )

    def status(self) -> int | None:
        """The exit status once it has ended, as a shell has it."""
        status = self.process.poll()
        return 128 - status if status is not None and status < 0 else status

    def stop(self) -> None:
        """Its score counts as it is."""
        self.asked_to_stop = True
        self._send(signal.SIGTERM)

    def save(self) -> None:
        """It goes on another time."""
        if self.process.poll() is None:
            ask_to_save(*heads_below(self.process.pid), self.process.pid)

    def kill(self) -> None:
        kill_session(self.process.pid)  # first: it finds them by their parents
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def last_lines(log: Path, begins_at: int = 0) -> list[str]:
    """What a failed trial said: its error if there is one, else its last lines."""
    try:
        text = log.read_bytes()[begins_at:].decode(errors="replace")
    except FileNotFoundError:
        return []
    told = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in told if re.match(r"error: |[\w.]*(Error|Exception)\b.*: ", line)]
    causes = [line for line in errors if GONE not in line]
    return causes[-1:] or errors[-1:] or told[-ERROR_LINES:]


def signal_by_torchrun(log: Path, begins_at: int) -> int | None:
    """Of what signal a run of several processes has died; torchrun's own status is 1 for all."""
    text = log.read_bytes()[begins_at:].decode(errors="replace")
    found = re.findall(r"Signal (\d+) \(SIG\w+\) received by PID|got signal: (\d+)", text)
    return int("".join(found[-1])) if found else None
