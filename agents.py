"""W&B agents on every device of a machine: `python sweep.py agents ENTITY/PROJECT/ID`.

Each is a real `wandb agent -f` in a session of its own, pinned to one GPU or given its share of the
CPU's threads. SIGTERM, SIGUSR1 and Ctrl-C preempt: each agent has SIGUSR1, which it forwards to its
run (saved, handed out again by W&B), and a second later SIGTERM. A run counts as failed unless its
summary says otherwise; so does one that was killed with -9, which the agent itself takes for a good
one. An agent that ends by an error, as when the server was away at a bad moment, is started again.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import yaml

from cli import Mistake
from config import Config
from ending import die_of
from pool import cores

TERM_AFTER_S = 1.0  # between SIGUSR1 and SIGTERM
KILL_AFTER_S = 60.0  # a run's ending and its last uploads
RESTART_AFTER_S = 5.0
GOOD_ENDS = ("finished", "stopped", "preempted", "interrupted")
REMEMBERED = 40  # last lines of each agent


class Agent:
    """One slot: an agent, started again when it fails, and the lines that it prints."""

    def __init__(self, name: str, command: list[str], env: dict[str, str]):
        self.name, self.command, self.env = name, command, env
        self.lines: deque[str] = deque(maxlen=REMEMBERED)
        self.finished: deque[str] = deque()  # ids of runs that nobody has looked at yet
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
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
        for line in process.stdout:
            print(f"[{self.name}] {line}", end="", flush=True)
            self.lines.append(line.rstrip())
            ended = re.search(r"Cleaning up finished run: (\S+)", line)
            if ended:
                self.finished.append(ended[1])

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def last_error(self) -> str:
        errors = [line for line in self.lines if "error" in line.lower()]
        return (errors or list(self.lines) or ["nothing was printed"])[-1]

    def clear(self) -> None:
        """End what the agent left behind in its session."""
        for pid in in_session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def in_session(leader: int) -> list[int]:
    """The processes of a session, from /proc; nowhere else is there a list."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


class Launcher:
    def __init__(self, agents: list[Agent], sweep_id: str, max_failures: int):
        self.agents, self.sweep_id, self.max_failures = agents, sweep_id, max_failures
        self.failures = 0  # in a row, over all agents
        self.request: str | None = None
        self.restart_at: dict[Agent, float] = {}

    def listen(self) -> None:
        for number, request in (
            (signal.SIGTERM, "preempt"),
            (signal.SIGUSR1, "preempt"),
            (signal.SIGINT, "interrupt"),
        ):
            signal.signal(number, lambda *_, request=request: self.ask(request))

    def ask(self, request: str) -> None:
        self.request = self.request or request

    def run(self) -> int:
        """Until every agent has ended by itself (0), a request, or too many failures (1)."""
        try:
            while self.request is None and self.failures < self.max_failures:
                if not self.look():
                    return 0
                time.sleep(0.1)
        finally:
            self.end()
        if self.request:
            die_of(self.request)
        print(f"{self.failures} failures in a row: no more runs are started", file=sys.stderr)
        return 1

    def look(self) -> bool:
        """Judge what has ended; whether there is anything left to wait for."""
        now = time.monotonic()
        for agent in self.agents:
            while agent.finished:
                self.judge(agent, agent.finished.popleft())
            status = agent.process.poll()
            if status and agent not in self.restart_at:
                agent.reader.join()
                self.fail(agent, f"the agent ended with status {status}")
                self.restart_at[agent] = now + RESTART_AFTER_S
            elif agent in self.restart_at and now > self.restart_at[agent]:
                del self.restart_at[agent]
                agent.clear()
                agent.start()
        return any(
            agent.process.poll() is None or agent in self.restart_at or agent.finished
            for agent in self.agents
        )

    def judge(self, agent: Agent, run_id: str) -> None:
        state = state_of(run_id, self.sweep_id)
        if state in GOOD_ENDS:
            self.failures = 0
        else:
            self.fail(agent, f"run {run_id} {'failed' if state else 'was killed'}")

    def fail(self, agent: Agent, what: str) -> None:
        self.failures += 1
        print(
            f"failure {self.failures} of at most {self.max_failures} in a row, {agent.name}: "
            f"{what}; last error: {agent.last_error()}",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        for agent in self.agents:
            agent.send(signal.SIGUSR1)
        time.sleep(TERM_AFTER_S)
        for agent in self.agents:
            agent.send(signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        for agent in self.agents:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(max(deadline - time.monotonic(), 0))
            agent.clear()


def state_of(run_id: str, sweep_id: str) -> str | None:
    """How the run ended, by its summary.json; None where it could not even write one."""
    folder = Path(os.environ.get("WANDB_DIR", "."))
    output_dir = Config().output_dir
    given = folder / "wandb" / f"sweep-{sweep_id}" / f"config-{run_id}.yaml"
    if given.is_file():
        parameters = yaml.safe_load(given.read_text()) or {}
        output_dir = parameters.get("output_dir", {}).get("value", output_dir)
    try:
        return json.loads((Path(output_dir) / run_id / "summary.json").read_text())["state"]
    except FileNotFoundError:
        return None


def gpus() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [one for one in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if one]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU \d+", listed.stdout, re.M))]


def places(workers: int | None) -> list[tuple[str, dict[str, str]]]:
    """(name, environment) of each agent."""
    devices = gpus()
    if devices:
        chosen = [devices[i % len(devices)] for i in range(workers or len(devices))]
        return [(f"{i}, GPU {one}", {"CUDA_VISIBLE_DEVICES": one}) for i, one in enumerate(chosen)]
    count = workers or 1
    threads = {"OMP_NUM_THREADS": str(max(cores() // count, 1))}
    return [(str(i), threads) for i in range(count)]


def slurm(sweep: str, options) -> str:
    # `python` of the environment that this was called from.
    given = f" --max-failures {options.max_failures}"
    given += f" --count {options.count}" if options.count else ""
    return f"""#!/bin/bash
# One agent a task of the array; submit with `sbatch`. Every task works on the same sweep.
#SBATCH --job-name=tinysweep
#SBATCH --array=0-{(options.workers or 4) - 1}
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.txt
cd "$SLURM_SUBMIT_DIR" || exit 2
# 120 s before the time is up the runs are preempted: W&B hands them out again with the same id, and
# they go on from runs/, which must be a folder that all nodes share.
srun "{sys.executable}" sweep.py agents {sweep} --workers 1{given}
status=$?
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"; fi
exit "$status"
"""


def main(options) -> int:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+", options.sweep):
        raise Mistake(f"{options.sweep!r} must be ENTITY/PROJECT/ID, as `wandb sweep` printed it")
    for flag in ("workers", "count", "max_failures"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise Mistake(f"--{flag.replace('_', '-')}={value} must be 1 or more")
    if options.print_slurm:
        print(slurm(options.sweep, options), end="")
        return 0
    here = Path(sys.executable).parent
    command = [str(here / "wandb"), "agent", "-f"]
    command += ["--count", str(options.count)] if options.count else []
    # The agent starts `python` from the PATH, and gives up by rules of its own.
    common = {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
        "WANDB_AGENT_MAX_INITIAL_FAILURES": "1000000",
        "PYTHONUNBUFFERED": "1",
    }
    started = [
        Agent(name, [*command, options.sweep], {**os.environ, **common, **env})
        for name, env in places(options.workers)
    ]
    launcher = Launcher(started, options.sweep.rpartition("/")[2], options.max_failures)
    launcher.listen()
    return launcher.run()
