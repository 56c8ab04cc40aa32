"""Where torch.compile is used, and what is asked for before."""

import pytest
import torch

import compiling
import cpu


@pytest.mark.parametrize(
    ("device", "variable", "flags", "compiler"),
    [("cpu", "CXX", " -O2", "C++ compiler"), ("cuda", "CC", "", "C compiler")],
)
def test_what_it_needs(device, variable, flags, compiler, monkeypatch, tmp_path):
    def missing() -> str:
        return compiling.missing(torch.device(device))

    nowhere = tmp_path / "nowhere"
    monkeypatch.setenv(variable, f"{nowhere}{flags}")
    assert missing() == f"a {compiler}, and there is no {nowhere}"
    monkeypatch.delenv(variable)
    assert "nowhere" not in missing()
    monkeypatch.setenv(variable, "true")
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers" in missing()
    (tmp_path / "Python.h").touch()
    assert missing() == ""


def test_triton_takes_no_flags(monkeypatch):
    monkeypatch.setenv("CC", "true -O2")
    assert compiling.missing(torch.device("cuda")) == "a C compiler, and there is no true -O2"


COMPILES = [  # compile, device, bf16, steps, compiler: whether, with AMX
    ("true", "cpu", False, 1, True, True),
    ("true", "cuda", True, 1, False, True),  # and it is said what is missing
    ("false", "cuda", True, 10**6, True, False),
    ("auto", "cuda", True, 4_999, True, False),
    ("auto", "cuda", False, 5_000, True, True),
    ("auto", "cuda", True, 5_000, False, False),  # auto asks for nothing that is not there
    ("auto", "cpu", True, 1_999, True, False),
    ("auto", "cpu", True, 2_000, True, True),
    ("auto", "cpu", True, 2_000, False, False),
    ("auto", "cpu", False, 10**6, True, False),
    ("auto", "mps", True, 10**6, True, False),
]


@pytest.mark.parametrize(("compile", "device", "amp", "steps", "compiler", "expected"), COMPILES)
def test_auto_compiles_where_it_pays(monkeypatch, compile, device, amp, steps, compiler, expected):
    monkeypatch.setattr(compiling, "missing", lambda _: "" if compiler else "one")
    for amx in (True, False):
        monkeypatch.setattr(cpu, "has_amx", lambda amx=amx: amx)
        without = expected and (device != "cpu" or compile == "true")
        found = compiling.wanted(compile, torch.device(device), amp, steps)
        assert found == (expected if amx else without)
