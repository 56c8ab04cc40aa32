"""Worker processes for work on many files: they leave Ctrl-C to their parent and die with it."""

import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.util import get_temp_dir
from pathlib import Path

PARENT_CHECK_S = 1.0


def cores() -> int:
    """Processors that this process may use (not all that the machine has)."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return math.ceil(min(there or 1, quota()))


def quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors whose time a container may use: the least that its control group, or one above
    it, allows (Linux's second version of them).
    """
    allowed = [math.inf]
    lines = proc.read_text().splitlines() if proc.is_file() else []
    for line in lines:
        if line.startswith("0::/"):
            own = root / line.removeprefix("0::/")
            for group in (own, *own.parents):
                if group.is_relative_to(root) and (group / "cpu.max").is_file():
                    most, period = (group / "cpu.max").read_text().split()
                    allowed.append(math.inf if most == "max" else int(most) / int(period))
    return min(allowed)


def worker_pool(processes: int) -> ProcessPoolExecutor:
    # fork starts in milliseconds and the work is files and numpy only; elsewhere fork is not safe.
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(
        processes, multiprocessing.get_context(method), _start, (os.getpid(),)
    )


def follow_parent(parent: int) -> None:
    """In a worker: leave Ctrl-C and SIGUSR1, which reach the group, to the parent; die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _start(parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the parent does at it
    follow_parent(parent)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    try:
        shutil.rmtree(get_temp_dir(), ignore_errors=True)  # of the socket that hands batches over
    finally:
        os._exit(1)
