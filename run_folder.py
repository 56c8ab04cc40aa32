"""A run's folder on disk: its lock, its config, its history, its checkpoints, its summary.

`last.pt` holds the last whole epoch and all rows of the history: it is the only truth for resuming.
`predictions.npz` and `best.pt` are written before it and take their places after it, at the latest
with the next start; `history.csv` is last. So a kill between two of them loses and doubles nothing,
also where the same epoch would not give the same bits again (a GPU).
"""

import csv
import io
import json
import os
import re
import secrets
import string
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

import locks
from cli import Mistake
from config import FIELDS, MAY_DIFFER, Config, to_dict

OF_BEST = ("predictions.npz", "best.pt")


def new_id() -> str:
    """Eight letters and digits, as W&B makes them."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def check_id(run_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", run_id):
        raise Mistake(f"run id {run_id!r} must be letters, digits, '-', '_' and '.' (up to 128)")
    return run_id


def choose_id(flag: str | None = None) -> str:
    """WANDB_RUN_ID, by which W&B knows the run, or that of --run_id; else a new one."""
    told = os.environ.get("WANDB_RUN_ID")
    if flag and told and flag != told:
        raise Mistake(f"--run_id={flag} and WANDB_RUN_ID={told} differ; give one of them")
    return check_id(told or flag or new_id())


def check_unused(folder: Path, resume: str) -> None:
    """What can be said of a run's folder before anything is begun."""
    if resume == "never" and folder.exists():
        raise Mistake(f"{folder} is there and resume=never; give another --run_id")
    if folder.exists() and not folder.is_dir():
        raise Mistake(f"{folder} is a file; give another --run_id")


def check_output_dir(output_dir: Path) -> None:
    """Whether a run's folder could be made in it; makes nothing."""
    existing = output_dir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise Mistake(f"output_dir={output_dir}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Mistake(f"output_dir={output_dir}: {existing} cannot be written")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all: written under another name, synced, renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class RunFolder:
    """`runs/<run_id>/`, held by one process: `.lock` is locked until it ends."""

    def __init__(self, output_dir: Path, run_id: str):
        self.run_id = check_id(run_id)
        self.path = output_dir / run_id
        check_output_dir(output_dir)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w")
        if not locks.take(self._lock):
            self._lock.close()
            raise Mistake(f"{self.path} is in use by another process; give another --run_id")
        # A worker that outlives us for a second must not hold the lock so long.
        os.register_at_fork(after_in_child=self._lock.close)

    def close(self) -> None:
        self._lock.close()

    def state(self) -> str | None:
        """How the run ended, as summary.json says; None where it has not."""
        return read_summary(self.path).get("state")

    def check_config(self, config: Config) -> None:
        """A run goes on only with the config that it began with."""
        path = self.path / "config.yaml"
        if not path.is_file():
            return
        if config.resume == "never":
            raise Mistake(f"{self.path} is there and resume=never; give another --run_id")
        compare_configs(read_config(path), config, path)

    def begin(self, config: Config, rows: list[dict[str, Any]]) -> None:
        """Begin, or go on after `rows`; a kill may have kept the last one from the table."""
        (self.path / "summary.json").unlink(missing_ok=True)
        if rows:
            self.write_history(rows)
        with writing(self.path / "config.yaml") as file:
            file.write(yaml.safe_dump(to_dict(config), sort_keys=False).encode())

    def write_about(self, start: dict[str, Any], data: dict[str, Any]) -> None:
        path = self.path / "about.json"
        starts = read_json(path).get("starts", [])
        with writing(path) as file:
            told = {**data, "starts": [*starts, start]}
            file.write((json.dumps(told, indent=1) + "\n").encode())

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        with writing(self.path / "history.csv") as file:
            file.write(text.getvalue().encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        with writing(self.path / "summary.json") as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())

    def write(self, name: str, save: Callable[[BinaryIO], None]) -> None:
        with writing(self.path / name) as file:
            save(file)

    def write_for(self, epoch: int, name: str, save: Callable[[BinaryIO], None]) -> None:
        """One of OF_BEST, which takes its place by `settle`."""
        self.write(f".{name}.{epoch}", save)

    def settle(self, best_epoch: int) -> None:
        """Files of the best epoch take their places; what an epoch that was not kept left goes."""
        for name in OF_BEST:
            for path in self.path.glob(f".*{name}.*"):
                if path.name == f".{name}.{best_epoch}":
                    path.replace(self.path / name)
                else:
                    path.unlink()


def read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Mistake(f"{path}: this is no YAML") from error
    if not isinstance(values, dict):
        raise Mistake(f"{path}: lines of `key: value` are needed")
    return values


def read_summary(run: Path) -> dict[str, Any]:
    """What a run says of its end; nothing where it has none."""
    return read_json(run / "summary.json")


def read_json(path: Path) -> dict[str, Any]:
    """Names and values; none where there is no such file."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise Mistake(f"{path}: this is no JSON ({error})") from error
    if not isinstance(told, dict):
        raise Mistake(f"{path}: names and their values are needed")
    return told


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, or those of these names."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise Mistake(f"{path}: cannot be read ({error}); remove it, or the run") from error


def is_in_use(run: Path) -> bool:
    """Whether a process works on this run; also one on another machine, where flock reaches."""
    return is_locked(run / ".lock")


def is_locked(path: Path, tries: int = 1) -> bool:
    try:
        # To lock a file that may only be read works, but not over NFS.
        with open(path, "r+" if os.access(path, os.W_OK) else "r") as lock:
            return not locks.take(lock, tries)
    except OSError:  # there is none
        return False


def compare_configs(before: dict[str, Any], config: Config, source: Path) -> None:
    for key, value in to_dict(config).items():
        had = before.get(key, FIELDS[key].default)  # the field may be younger than the run
        if key not in MAY_DIFFER and had != value:
            raise Mistake(
                f"{source} has {key}={had}, this call {key}={value}; give the same, "
                "or another --run_id"
            )
