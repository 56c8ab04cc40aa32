"""What the processor is told and asked; what is chosen by it."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO

# Page faults of a step that takes 40 to 76 MiB ten times and gives all back, once it has settled.
FAULTS = """
import resource, cpu, torch
def step():
    return [torch.ones(n * 2**20) for n in range(10, 20)]
if {keep}: cpu.keep_memory()
for _ in range(10): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# MiB that a fork takes along of 640 that were given back.
TAKEN_ALONG = """
import os, re, cpu, torch
cpu.keep_memory()
for _ in range(2): [torch.ones(4 * 2**20) for _ in range(40)]
def resident():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read())[1]) // 1024
before = resident()
if not os.fork():
    print(before, resident())
"""


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
@pytest.mark.skipif(
    HUGE.is_file() and "[always]" in HUGE.read_text(), reason="huge pages: too few to count"
)
def test_memory_is_kept():
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(keep=False) > 25_000  # 148,480 pages of 4 kB
    assert faults(keep=True) < 1_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_memory_that_is_kept_is_not_handed_down():
    """To a loader's workers, which live as long as the run."""
    command = [sys.executable, "-c", TAKEN_ALONG]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    before, handed_down = map(int, done.stdout.split())
    assert before > 640
    assert handed_down < before - 600
