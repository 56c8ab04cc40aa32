"""Processes of other programs that we start: none outlives us by accident, all can be ended."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

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


def in_session(leader: int) -> dict[int, int]:
    """The processes of a session and their groups, from /proc; nowhere else is there a list."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, group, session, *_ = path.read_bytes().rpartition(b")")[2].split()
            if int(session) == leader and state != b"Z":
                found[int(path.parent.name)] = int(group)
    return found


def kill_session(leader: int) -> None:
    for pid in in_session(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
