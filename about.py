"""What it takes to run something again: command, commit, versions, machine, data."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool import cores

if TYPE_CHECKING:
    import torch

    from data import Data
    from learner import Learner
    from run_folder import RunFolder

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "wandb",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "grad-cam",
)


def note_start(folder: "RunFolder", learner: "Learner", data: "Data") -> None:
    """Into the run's about.json: what it is made of, and one more start."""
    ranks = learner.ranks
    program = f"torchrun --nproc_per_node={ranks.local_world}" if ranks.several else "python"
    start = {**about_start(program), "device": device_name(learner.device)}
    start |= {"bf16": learner.amp, "winograd": learner.winograd}
    if ranks.several:
        start["processes"] = ranks.world
    folder.write_about(start, about_run(learner, data))


def about_start(program: str = "python") -> dict[str, Any]:
    versions = {name: _version(name) for name in LIBRARIES}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": f"{program} {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        **commit(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "processor": processor(),
        "cores": cores(),
    }


def about_run(learner: "Learner", data: "Data") -> dict[str, Any]:
    """What the config does not say of a run: its images, its model."""
    return {
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "full_pixels": learner.image_size,
        "split_fingerprint": data.fingerprint,
        "training_images": len(data.train),
        "validation_images": len(data.val),
        "classes": [data.class_name(label) for label in range(len(data.cache.classes))],
    }


def device_name(device: "torch.device") -> str:
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def commit() -> dict[str, Any]:
    """This checkout's commit, and whether files differ from it; nothing where git knows none."""
    here = Path(__file__).parent
    found = []
    for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            told = subprocess.run(
                ["git", "-C", here, *question], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return {}
        if told.returncode:
            return {}
        found.append(told.stdout.strip())
    return {"commit": found[0], "changed": bool(found[1])}


def processor() -> str:
    """The processor's name, as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
