"""What the processor is told and asked; what is chosen by it."""

import subprocess
import sys

import pytest
import torch

import cpu
import learner
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


def test_what_compiling_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", f"{tmp_path / 'nowhere'} -O2")
    assert cpu.missing_for_compile() == f"a C++ compiler, and there is no {tmp_path / 'nowhere'}"
    monkeypatch.setenv("CXX", "")
    assert "nowhere" not in cpu.missing_for_compile()
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(cpu.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers" in cpu.missing_for_compile()
    (tmp_path / "Python.h").touch()
    assert cpu.missing_for_compile() == ""


COMPILES = [  # compile, device, amp, steps, compiler: whether
    ("true", "cpu", False, 1, True, True),
    ("false", "cuda", True, 10**6, True, False),
    ("auto", "cuda", True, 4_999, True, False),
    ("auto", "cuda", False, 5_000, True, True),
    ("auto", "cpu", True, 1_999, True, False),
    ("auto", "cpu", True, 2_000, True, True),
    ("auto", "cpu", True, 2_000, False, False),  # auto asks for nothing that is not there
    ("auto", "cpu", False, 10**6, True, False),
    ("auto", "mps", True, 10**6, True, False),
]


@pytest.mark.parametrize(("compile", "device", "amp", "steps", "compiler", "expected"), COMPILES)
def test_auto_compiles_where_it_pays(monkeypatch, compile, device, amp, steps, compiler, expected):
    monkeypatch.setattr(cpu, "missing_for_compile", lambda: "" if compiler else "one")
    assert learner.wants_compile(compile, torch.device(device), amp, steps) == expected
