"""The folder of a study: made where there is none, opened, and refused to another sweep."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

import locks
import sweep_file
from cli import Mistake
from collection import is_study
from journal import open_journal
from run_folder import writing
from study import Study, plain

# What a study was made for, beside what its command's recipe gives; the rest of a sweep's file may
# change between two calls.
FIXED = ("method", "metric", "parameters", "early_terminate", "program", "command")
OTHER_FOLDER = "give another --dir (or another `name`)"
BEGAN = "began_with"  # these, in the journal: the file can be edited


def folder_of(sweep: dict[str, Any], file: Path) -> Path:
    """`sweeps/<name>`, where no other is given."""
    return Path("sweeps") / plain(str(sweep.get("name") or file.stem))


def create(folder: Path, sweep: dict[str, Any]) -> Study:
    """The study in `folder`, made where there is none; a Mistake where it is of another sweep."""
    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Mistake(f"--dir {folder}: a part of it is a file") from error
    except OSError as error:
        raise Mistake(f"--dir {folder}: {error.strerror}") from error
    with open(folder / ".lock", "a") as file:
        locks.wait_for(file)
        kept = folder / "sweep.yaml"
        before = sweep_file.read(kept) if kept.is_file() else None
        study = _open(folder, sweep)
        began = study.optuna.user_attrs.get(BEGAN) or (before and _fixed(before))
        if before == sweep:
            _compare_kept(began, sweep, kept)
        else:
            _compare(began, sweep, f"{folder} is a study with", OTHER_FOLDER)
        check_command(study)
        if BEGAN not in study.optuna.user_attrs:
            study.optuna.set_user_attr(BEGAN, _fixed(before or sweep))
        for path, content in ((folder / "command.yaml", study.by_command), (kept, sweep)):
            if not path.is_file() or (path == kept and before != sweep):
                with writing(path) as opened:
                    opened.write(yaml.safe_dump(content, sort_keys=False).encode())
    return study


def load(folder: Path) -> Study:
    if not is_study(folder) or not (folder / "sweep.yaml").is_file():
        call = f"python sweep.py run FILE --dir {shlex.quote(str(folder))}"
        raise Mistake(f"{folder} is no study: `{call}` makes one")
    kept = folder / "sweep.yaml"
    study = _open(folder, sweep_file.read(kept))
    _compare_kept(study.optuna.user_attrs.get(BEGAN), study.sweep, kept)
    return study


def _compare_kept(began: dict[str, Any] | None, sweep: dict[str, Any], kept: Path) -> None:
    _compare(began, sweep, f"{kept} was changed: the study began with", "put it back")


def _compare(began: dict[str, Any] | None, sweep: dict[str, Any], what: str, advice: str) -> None:
    now = _fixed(sweep)
    for key in FIXED if began else ():
        if began[key] != now[key]:
            raise Mistake(f"{what} another `{key}`; {advice}")


def _fixed(sweep: dict[str, Any]) -> dict[str, Any]:
    """As the journal, which is JSON, gives it back."""
    return json.loads(json.dumps({key: sweep.get(key) for key in FIXED}, default=str))


def check_command(study: Study, advice: str = OTHER_FOLDER) -> None:
    """A Mistake where the command gives trials something else than when the study began."""
    before, now = study.by_command, sweep_file.of_command(study.sweep.get("command"))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise Mistake(
                f"{study.folder} began with {key}={before.get(key)} by its command, and it is now "
                f"{now.get(key)} (another recipe?); {advice}"
            )


def _open(folder: Path, sweep: dict[str, Any]) -> Study:
    optuna_study, storage = open_journal(
        folder / "study.journal", sweep["metric"].get("goal", "minimize")
    )
    return Study(folder, sweep, optuna_study.user_attrs["token"], optuna_study, storage)
