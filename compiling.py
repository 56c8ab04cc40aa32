"""torch.compile: where it pays, and what it needs to be there."""

import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch

import cpu

# Below so many steps the minutes of compiling are not won back.
FROM_STEPS = {"cuda": 5_000, "cpu": 2_000}


def wanted(compile: str, device: torch.device, amp: bool, total_steps: int) -> bool:
    """`auto`: where the run is long enough to win its compiling back; on a CPU with AMX only: on
    others nothing was won, as most of a step are convolutions, which are torch's own either way.
    """
    if compile != "auto":
        return compile == "true"
    if total_steps < FROM_STEPS.get(device.type, math.inf) or missing(device):
        return False
    return device.type == "cuda" or (amp and cpu.has_amx())


def missing(device: torch.device) -> str:
    """What torch.compile needs for this device and does not find here; nothing where it has all."""
    if device.type == "cpu":
        language, names = "C++", [(os.environ.get("CXX") or "g++").split()[0]]
    elif device.type == "cuda":  # C code starts what runs there; Triton takes CC as it is
        language, names = "C", [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        return ""
    if not any(map(shutil.which, names)):
        return f"a {language} compiler, and there is no {' or '.join(names)}"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"Python's headers, and there is no {header}"
    return ""
