"""What the processor is told and asked; what is chosen by it."""

import subprocess
import sys

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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_memory_is_kept():
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(keep=False) > 100_000  # 148,480 pages
    assert faults(keep=True) < 1_000
