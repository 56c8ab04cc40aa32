"""Processes of other programs that we start: none outlives us by accident, all can be ended."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PR_SET_PDEATHSIG = 1


def dies_with_us() -> Callable[[], None] | None:
    """For Popen's `preexec_fn`: the child has SIGTERM when we die, by whatever (Linux only)."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def follow() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # dead already
            os.kill(os.getpid(), signal.SIGKILL)

    return follow


class Process(NamedTuple):
    parent: int
    group: int
    session: int


def processes() -> dict[int, Process]:
    """All that live, from /proc; nowhere else is there a list."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, *numbers = path.read_bytes().rpartition(b")")[2].split()
            if state != b"Z":
                found[int(path.parent.name)] = Process(*map(int, numbers[:3]))
    return found


def in_session(leader: int) -> dict[int, int]:
    """The processes of a session and their groups."""
    return {pid: one.group for pid, one in processes().items() if one.session == leader}


def heads_below(ancestor: int) -> list[int]:
    """Of the processes that this one has started, or they, those at the head of a group."""
    everyone, below = processes(), [ancestor]
    for pid in below:  # which grows
        below += [child for child, one in everyone.items() if one.parent == pid]
    return [pid for pid in below[1:] if everyone[pid].group == pid]


def ask_to_save(*pids: int) -> None:
    """SIGUSR1 to the processes of a run, one by one: torchrun, where it is one of them, forgets a
    signal over the next one.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)


def parents(generations: int) -> list[int]:
    """Our parent, its parent, ...; where there is no /proc, our parent alone."""
    everyone, found = processes() if generations > 1 else {}, [os.getppid()]
    while len(found) < generations and found[-1] in everyone:
        found.append(everyone[found[-1]].parent)
    return found


def kill_session(leader: int) -> None:
    """Also the sessions that its processes have begun, as torchrun does."""
    for head in [leader, *heads_below(leader)]:
        for pid in in_session(head):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
