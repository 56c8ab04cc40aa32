"""Processes by what /proc tells of them: what works where, and an end to it."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from processes import processes


def commands() -> dict[int, str]:
    """The command lines of all that live, by their numbers."""
    found = {}
    for pid in processes():
        with contextlib.suppress(OSError):  # it has ended
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            found[pid] = os.fsdecode(line).replace("\0", " ")
    return {pid: line for pid, line in found.items() if line}


def called_with(word: str) -> list[int]:
    return [pid for pid, line in commands().items() if word in line]


def working_in(folder: Path) -> dict[int, str]:
    found = {}
    for pid, line in commands().items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").resolve() == folder.resolve():
                found[pid] = line
    return found


def at_home_in(home: Path) -> dict[int, str]:
    """What a run has started lives in its HOME, whatever session or group it is in."""
    return {
        pid: line for pid, line in commands().items() if variables(pid).get("HOME") == str(home)
    }


def variables(pid: int) -> dict[str, str]:
    """Its environment, as it was begun with; empty where it has ended."""
    try:
        lines = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def parent_of(pid: int) -> int:
    return processes()[pid].parent


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
