"""What a run that has ended has on disk, and what W&B's server has of it.

The server is asked, through `wandb.Api`: neither the exit status of `wandb sync` nor its "Finished"
nor its marks in a run's folder say that anything arrived.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import collection
import records
from run_folder import read_arrays
from tracking import PROJECT
from wandb_api import MOST_ROWS, TIMEOUT_S, asked, login

EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1}  # of the states that are an end
GRACE_S = 20  # it counts some seconds later what it was sent
RUN, ROWS, SCORE, END = "the run", "the epochs", "best_val_acc", "the end"
MODEL, TABLE, PICTURES = "the model", "the table of mistakes", "pictures"
LATE = {RUN, ROWS, SCORE, END, PICTURES}  # the server may have been sent it and not show it yet


@dataclass(frozen=True)
class Kept:
    """A run on disk."""

    path: Path
    summary: dict[str, Any]
    rows: list[dict[str, Any]]  # of history.csv
    config: dict[str, Any]
    has_table: bool
    records: list[Path]  # W&B's folders, the oldest first
    pictures: dict[str, Path]  # that were logged, by their names at the server

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return self.summary["state"] == "finished"

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.summary["state"]]


def read_run(path: Path) -> Kept | None:
    """None for a run that never began, or that can still go on."""
    if not collection.is_run(path):
        return None
    past = collection.read_run(path)
    if past.state not in EXIT_CODES:
        return None
    rows = [{**row, "epoch": int(row["epoch"])} for row in past.rows]
    has_table = past.state == "finished" and bool(past.config["mistakes"]) and _is_wrong(path)
    found = _records(path)
    roots = [record / "files" for record in found]
    pictures = {
        str(file.relative_to(root)): file
        for root in roots
        for file in (root / "media" / "images").rglob("*.*")
    }
    return Kept(path, past.summary, rows, past.config, has_table, found, pictures)


def _is_wrong(path: Path) -> bool:
    """Whether there is a mistake to show."""
    if not (path / "predictions.npz").is_file():
        return False
    told = read_arrays(path / "predictions.npz", "true", "predicted")
    return bool((told["true"] != told["predicted"]).any())


def _records(path: Path) -> list[Path]:
    places = {path, Path(os.environ.get("WANDB_DIR", path))}
    found = [one for place in places for one in records.of_run(place / "wandb", path.name)]
    return sorted(found, key=lambda record: record.name)


@dataclass(frozen=True)
class Arrived:
    """A run at the server."""

    lines: int  # of its history: epochs, steps, pictures
    epochs: set[int]
    score: float | None
    state: str
    kinds: set[str]  # of its artifacts that are whole
    files: set[str]
    sweep: str | None


def lacking(kept: Kept, arrived: Arrived | None) -> set[str]:
    if arrived is None:
        return {RUN}
    there = {
        ROWS: {row["epoch"] for row in kept.rows} <= arrived.epochs,
        SCORE: arrived.score == kept.summary.get("best_val_acc"),
        END: arrived.state == ("failed" if kept.exit_code else "finished"),
        MODEL: not kept.finished or "model" in arrived.kinds,
        TABLE: not kept.has_table or "run_table" in arrived.kinds,
        PICTURES: kept.pictures.keys() <= arrived.files,
    }
    return {what for what, is_there in there.items() if not is_there}


class Server:
    """The W&B project that a sweep belongs to."""

    def __init__(self, sweep: dict[str, Any]):
        self.api = login("push again", TIMEOUT_S)
        self.url = self.api.settings["base_url"]
        self.project = os.environ.get("WANDB_PROJECT") or sweep.get("project") or PROJECT
        with self.asked():
            given = os.environ.get("WANDB_ENTITY") or sweep.get("entity")
            self.entity = given or self.api.default_entity

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}"

    def asked(self) -> AbstractContextManager[None]:
        """What goes wrong at the server becomes one line."""
        return asked(self.api, "what has arrived stays, push again")

    def look(self, run_id: str) -> Arrived | None:
        from wandb.apis.public.runs import RunNotFoundError
        from wandb.errors import CommError

        self.api.flush()  # it would tell again what it has told before
        try:
            run = self.api.run(f"{self.path}/{run_id}")
        except CommError as error:
            if isinstance(error.exc, RunNotFoundError):
                return None
            raise
        rows = run.history(keys=["epoch", "val/acc"], samples=MOST_ROWS, pandas=False)
        return Arrived(
            run.historyLineCount or 0,
            {int(row["epoch"]) for row in rows},
            run.summary_metrics.get("best_val_acc"),
            run.state,
            _whole_artifacts(run),
            {file.name for file in run.files(per_page=1000)},
            run.sweep_name,
        )

    def upload(self, run_id: str, name: str, path: Path) -> None:
        """A file of a run; the run's state stays as it is."""
        run = self.api.run(f"{self.path}/{run_id}")
        run.upload_file(str(path), root=str(path).removesuffix(name))

    def wait(self, run_id: str, is_enough: Callable[[Arrived | None], bool]) -> Arrived | None:
        until = time.monotonic() + GRACE_S
        while not is_enough(arrived := self.look(run_id)) and time.monotonic() < until:
            time.sleep(1)
        return arrived


def _whole_artifacts(run) -> set[str]:
    listed = run.logged_artifacts(per_page=100)
    with suppress(AssertionError):  # the client's own, where one has not come whole
        next(iter(listed), None)
    nodes = listed.last_response.nodes()
    return {node.artifact_type.name for node in nodes if node.state == "COMMITTED"}
