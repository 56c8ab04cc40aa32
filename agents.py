"""W&B agents on every device of a machine: `python sweep.py agents ENTITY/PROJECT/ID`.

Each is a real `wandb agent -f` in a session of its own, pinned to its GPUs or given its share of
the CPU's threads. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C preempt: each run has SIGUSR1 (saved, handed
out again by W&B), and its agent SIGTERM. A run counts as failed unless its summary says otherwise;
so does one that was killed with -9, which the agent itself takes for a good one. An agent that ends
by an error, as when the server was away at a bad moment, is started again. (A launcher that is
itself killed with -9 leaves its agents at work.)
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import suggestion
from cli import Mistake
from config import Config
from ending import die_of, on_request
from pool import cores
from processes import ask_to_save, heads_below, in_session, kill_session
from ranks import GONE, PROCESSES
from sweep_file import of_command

AGAIN_AFTER_S = 1.0  # SIGUSR1, for a run that was begun in between
KILL_AFTER_S = 60.0  # a run's ending and its last uploads
RESTART_AFTER_S = 5.0
CLOCKS_DIFFER_S = 2.0  # of this machine and of the one that keeps the runs
AGAIN = ("preempted", "interrupted")  # after which a run is begun again
NO_ERROR = "it printed none"
GOOD_ENDS = ("finished", "stopped", "preempted", "interrupted")


@dataclass
class EndedRun:
    run_id: str
    command: list[str]
    begun: float  # time of day
    error: str  # the last line of its output that tells of one


class Agent:
    """One slot: an agent, started again when it fails, and what it prints."""

    def __init__(self, name: str, command: list[str], count: int | None, env: dict[str, str]):
        self.name, self.command, self.count, self.env = name, command, count, env
        self.ended: deque[EndedRun] = deque()  # that nobody has looked at yet
        self.runs = 0  # that have ended
        self.exits = 0  # errors in a row
        self.process: subprocess.Popen | None = None
        self.restart_at: float | None = None

    def start(self) -> None:
        self.last_error = NO_ERROR
        limit = ["--count", str(self.count - self.runs)] if self.count else []
        self.restart_at = None
        self.process = subprocess.Popen(
            [*self.command[:-1], *limit, self.command[-1]],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()

    def _read(self, process: subprocess.Popen) -> None:
        command, begun, error = [], 0.0, NO_ERROR
        for line in process.stdout:
            with contextlib.suppress(OSError):  # nobody reads us; the agent must not block
                print(f"[{self.name}] {line}", end="", flush=True)
            if "About to run command: " in line:
                command, begun, error = words_of(line), time.time(), NO_ERROR
            elif re.search(r"error", line, re.IGNORECASE) and tells(line) >= tells(error):
                error = line.strip()
            self.last_error = error  # at once: who has left the agent may hold its output open
            ended = re.search(r"Cleaning up finished run: (\S+)", line)
            if ended:
                self.runs += 1
                self.ended.append(EndedRun(ended[1], command, begun, error))

    @property
    def works(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        """To the agent; where it has died, to the run that it left behind."""
        if self.process is None:
            return
        for pid in [self.process.pid] if self.works else orphans(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def preempt(self) -> None:
        runs = heads_below(self.process.pid) if self.process else []
        ask_to_save(*runs)
        if not runs:
            self.send(signal.SIGUSR1)  # which forwards it

    def wait(self, deadline: float) -> None:
        """Until the agent and its runs have ended; what is there at the deadline is killed."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(deadline - time.monotonic(), 0))
        while orphans(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        kill_session(self.process.pid)
        self.process.wait()
        self.reader.join(timeout=2)
        self.process = None  # its number may be another's from here on


def tells(line: str) -> int:
    """How much of a cause a line is: our own words more than those of torchrun about them."""
    if not line.startswith("error: "):
        return 0
    return 1 if GONE in line else 2


def orphans(leader: int) -> list[int]:
    """Runs of an agent, each the head of a group of its own."""
    return [pid for pid, group in in_session(leader).items() if pid == group != leader]


class Launcher:
    def __init__(self, agents: list[Agent], sweep_id: str, max_failures: int):
        self.agents, self.sweep_id, self.max_failures = agents, sweep_id, max_failures
        self.failures = 0  # runs in a row, over all agents
        self.request: str | None = None

    def listen(self) -> None:
        on_request(self.ask)

    def ask(self, request: str) -> None:
        self.request = self.request or request

    def run(self) -> int:
        """Until every agent has ended by itself (0), a request, or too many failures (1)."""
        try:
            for agent in self.agents:
                agent.start()
            while self.request is None and self.failures < self.max_failures:
                if not self.look():
                    break
                time.sleep(0.1)
        finally:
            self.end()
        if self.request:
            die_of(self.request)
        if self.failures >= self.max_failures:
            print(f"{self.failures} failures in a row: no more runs are started", file=sys.stderr)
        given_up = [agent for agent in self.agents if agent.exits >= self.max_failures]
        return int(bool(given_up) or self.failures >= self.max_failures)

    def look(self) -> bool:
        """Judge what has ended; whether there is anything left to wait for."""
        for agent in self.agents:
            works = agent.works  # asked first: what it says after that is there below
            if not works and agent.process is not None:
                agent.reader.join(timeout=2)
            while agent.ended:
                self.judge(agent, agent.ended.popleft())
            if not works and agent.process is not None:
                self.after(agent, agent.process.returncode)
            elif agent.restart_at is not None and time.monotonic() > agent.restart_at:
                agent.start()
        return any(a.process is not None or a.restart_at is not None for a in self.agents)

    def after(self, agent: Agent, status: int) -> None:
        """An agent has ended: its runs end, too, and by an error it is started again."""
        agent.send(signal.SIGUSR1)
        agent.wait(time.monotonic() + KILL_AFTER_S)
        if status == 0 or (agent.count and agent.runs >= agent.count):
            return
        agent.exits += 1
        self.say(agent, agent.exits, f"the agent ended with status {status}", agent.last_error)
        if agent.exits < self.max_failures:
            agent.restart_at = time.monotonic() + RESTART_AFTER_S

    def judge(self, agent: Agent, ended: EndedRun) -> None:
        state = state_of(ended, self.sweep_id)
        if state in GOOD_ENDS:
            self.failures = agent.exits = 0
            return
        self.failures += 1
        what = "failed" if state else "left no summary: killed, or ended before it began"
        self.say(agent, self.failures, f"run {ended.run_id} {what}", ended.error)

    def say(self, agent: Agent, number: int, what: str, error: str) -> None:
        print(
            f"failure {number} of at most {self.max_failures} in a row, {agent.name}: {what}; "
            f"last error: {error}",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        for agent in self.agents:
            agent.preempt()
            # At once: an agent whose run has ended asks for the next one, which may be that very
            # run, unless it knows of its own end. (It forwards this, too, but a first request
            # counts.)
            agent.send(signal.SIGTERM)
        time.sleep(AGAIN_AFTER_S)
        for agent in self.agents:
            agent.preempt()
        deadline = time.monotonic() + KILL_AFTER_S
        for agent in self.agents:
            agent.wait(deadline)


def words_of(line: str) -> list[str]:
    """Of a command that was logged; words with spaces are in quotes."""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]


def state_of(ended: EndedRun, sweep_id: str) -> str | None:
    """How the run ended, by its summary.json; None where it could not even write one (that of a
    preemption before lies there until the run has begun again).
    """
    folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb" / f"sweep-{sweep_id}"
    told = suggestion.read_parameters(folder / f"config-{ended.run_id}.yaml")
    told, command = suggestion.own(told, ended.command, ended.run_id)
    try:
        by_command = of_command(command)
    except Mistake:  # the run has said so itself
        by_command = {}
    places = {"output_dir": Config.output_dir, **by_command, **told}
    summary = Path(str(places["output_dir"])) / ended.run_id / "summary.json"
    try:
        state = json.loads(summary.read_text())["state"]
        before = summary.stat().st_mtime < ended.begun - CLOCKS_DIFFER_S
        return None if before and state in AGAIN else state
    except OSError:
        return None


def gpus() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        named = [one.strip() for one in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return [one for one in named if one and not one.startswith("-")]  # -1: none
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU \d+", listed.stdout, re.M))]


def places(workers: int | None, devices: int = 1) -> list[tuple[str, dict[str, str]]]:
    """(name, environment) of each agent or trial: its GPUs, or its share of the CPU's threads;
    with more than one device a run is so many processes.
    """
    several = {PROCESSES: str(devices)} if devices > 1 else {}
    found = gpus()
    if found:
        if devices > len(found):
            raise Mistake(f"--devices {devices}: there are {len(found)} GPUs")
        groups = [",".join(found[i : i + devices]) for i in range(0, len(found), devices)]
        groups = groups[: len(found) // devices]
        chosen = [groups[i % len(groups)] for i in range(workers or len(groups))]
        return [
            (f"{i}, GPU {group}", {"CUDA_VISIBLE_DEVICES": group, **several})
            for i, group in enumerate(chosen)
        ]
    count = workers or 1
    threads = {"OMP_NUM_THREADS": str(max(cores() // (count * devices), 1))}
    return [(str(i), threads | several) for i in range(count)]


def slurm(sweep: str, options) -> str:
    # `python` of the environment that this was called from.
    given = f" --max-failures {options.max_failures}"
    given += f" --count {options.count}" if options.count else ""
    given += f" --devices {options.devices}" if options.devices > 1 else ""
    return f"""#!/bin/bash
# One agent a task of the array; submit with `sbatch`. Every task works on the same sweep.
#SBATCH --job-name=tinysweep
#SBATCH --array=0-{(options.workers or 4) - 1}
#SBATCH --gpus={options.devices}                # without GPUs remove this line
#SBATCH --cpus-per-task={4 * options.devices}
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt
cd "$SLURM_SUBMIT_DIR" || exit 2
# 120 s before the time is up the runs are preempted: W&B hands them out again with the same id, and
# they go on from runs/, which must be a folder that all nodes share.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
  "{sys.executable}" sweep.py agents {shlex.quote(sweep)} --workers 1{given}
status=$?
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"; fi
exit "$status"
"""


def main(options) -> int:
    if not re.fullmatch(r"[\w.-]+/[^/]+/[\w.-]+", options.sweep):
        raise Mistake(f"{options.sweep!r} must be ENTITY/PROJECT/ID, as `wandb sweep` printed it")
    for flag in ("workers", "count", "max_failures"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise Mistake(f"--{flag.replace('_', '-')}={value} must be 1 or more")
    if options.print_slurm:
        print(slurm(options.sweep, options), end="")
        return 0
    here = Path(sys.executable).parent
    wandb = shutil.which("wandb", path=here) or shutil.which("wandb")
    if not wandb:
        raise Mistake("there is no `wandb` command: `pip install -r requirements.txt`")
    command = [wandb, "agent", "-f", options.sweep]
    # The agent starts `python` from the PATH, and gives up by rules of its own.
    common = {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
        "WANDB_AGENT_MAX_INITIAL_FAILURES": "1000000",
        "PYTHONUNBUFFERED": "1",
    }
    slots = [
        Agent(name, command, options.count, {**os.environ, **common, **env})
        for name, env in places(options.workers, options.devices)
    ]
    launcher = Launcher(slots, options.sweep.rpartition("/")[2], options.max_failures)
    launcher.listen()
    return launcher.run()
