"""What W&B's client has written of a run offline: a record a start, to be handed over later."""

import glob
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import dies_with_us

TIME = f"{'?' * 8}_{'?' * 6}"  # in a record's name
HEADER_BYTES = 7  # of a .wandb file; one that was killed at its start has no more


def of_run(folder: Path, run_id: str, online: bool = False) -> list[Path]:
    """Those in a `wandb` folder that have anything in them, the oldest first: the time is in their
    names. (Those of online runs say what was to be sent.)
    """
    kind = "run" if online else "offline-run"
    mine = [*folder.glob(f"{kind}-{TIME}-{glob.escape(run_id)}")]
    sizes = {p: sum(file.stat().st_size for file in p.glob("run-*.wandb")) for p in mine}
    return sorted((p for p in mine if sizes[p] > HEADER_BYTES), key=lambda p: p.name)


def is_synced(record: Path) -> bool:
    """By the mark that `wandb sync` leaves."""
    return any(record.glob("run-*.wandb.synced"))


def handing_over(found: Sequence[Path], run_id: str) -> str:
    """What a shell is told to hand these over; each by itself, as one that is empty stops all."""
    if len(found) == 1:
        return f"wandb sync {shlex.quote(str(found[0]))}"
    folder = shlex.quote(str(found[0].parent))
    return f'for one in {folder}/offline-run-{TIME}-{run_id}; do wandb sync "$one"; done'


def read_rows(record: Path) -> list[dict[str, Any]]:
    """The history in a record."""
    told = client("leet", "inspect", "--json", record).splitlines()
    entries = [json.loads(line) for line in told if line.startswith("{")]
    return [one["history"]["item"] for one in entries if one["type"] == "history"]


def client(*arguments: str | Path) -> str:
    """What the real `wandb` command prints; its service is its own, and ends with it."""
    ours = ("WANDB_SILENT", "WANDB_SERVICE")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *map(str, arguments)],
        env={key: value for key, value in os.environ.items() if key not in ours},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=dies_with_us(),
    )
    return done.stdout.strip() or f"`wandb {arguments[0]}` ended with status {done.returncode}"
