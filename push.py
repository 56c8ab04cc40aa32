"""Hand an offline study over to W&B, so that `wandb agent` goes on where it stopped.

Each run that has ended is uploaded by the real `wandb sync`, by itself; what the server lacks then,
because the run's folder was moved or a process was killed, is logged again from the run's own
files. Then `wandb sweep -R` makes a sweep with these runs as its prior runs. All of it may break
off anywhere: the next call does only what is missing.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import locks
from arrived import LATE, Arrived, Kept, Server, lacking, read_run
from cli import Failure, Mistake
from mending import log_rows, mend
from records import client, read_rows
from run_folder import writing
from sweep_file import read as read_sweep
from wandb_api import online


@dataclass(frozen=True)
class Handed:
    """The runs of a study."""

    name: str
    trials: Sequence[Path]
    ended: Sequence[Path]  # of these trials, as the study knows it
    seeds: Sequence[Path]  # of `confirm`: they are in the project, not in the sweep


def push(handed: Handed, sweep_file: Path, record: Path) -> int:
    """Hand over a study; `record` remembers what was done. 0: all is there."""
    sweep, name = read_sweep(sweep_file), handed.name
    found = {path: read_run(path) for path in (*handed.trials, *handed.seeds)}
    ended = [kept for kept in found.values() if kept]
    lost = [path.name for path in handed.ended if not found[path]]
    open_ = [path.name for path, kept in found.items() if not kept and path.name not in lost]
    if not ended:
        raise Mistake(f"study {name}: none of its runs has ended, there is nothing to push")
    with alone(record), online():
        server = Server(sweep)
        done = Done(record, f"{server.url}/{server.path}")
        with server.asked():
            arrived = bring_all(server, ended, done, name)
            there = [(kept, one) for kept, one in zip(ended, arrived, strict=True) if one]
            trials = [p for p in there if p[1].epochs and p[0].path not in handed.seeds]
            joined = into_sweep(server, done, name, sweep_file, trials)
    whole = sum(not lacking(*pair) for pair in there)
    print(f"{name}: {whole} of {len(ended)} ended runs are whole at W&B, in {server.path}")
    if open_:
        print(f"left out until they have ended: {', '.join(open_)}")
    if lost:
        print(f"left out, for want of a config.yaml or a summary.json: {', '.join(lost)}")
    names = [kept.id for kept in ended if not kept.rows]
    if names:
        print(f"ended before an epoch, so not given to the sweep: {', '.join(names)}")
    if joined:
        tell_how_to_go_on(f"{server.path}/{joined}", sweep, len(trials))
    return int(whole < len(ended))


def tell_how_to_go_on(path: str, sweep: dict[str, Any], runs: int) -> None:
    if (sweep.get("run_cap") or runs + 1) <= runs:
        print(f"run_cap is {sweep['run_cap']}: raise it in the app if the agent finds no work")
    print(f"the search goes on with: wandb agent {shlex.quote(path)}")


@contextmanager
def alone(record: Path) -> Iterator[None]:
    with open(record.with_name(f".{record.name}.lock"), "w") as lock:
        if not locks.take(lock):
            raise Mistake(f"{record.parent} is being pushed by another process")
        yield


class Done:
    """What was done so far, in a file."""

    def __init__(self, path: Path, place: str):
        self.path = path
        self.values: dict[str, Any] = {"place": place, "sweep": None, "sent": {}, "joined": []}
        if path.is_file():
            try:
                self.values.update(json.loads(path.read_text()))
            except ValueError as error:
                raise Mistake(f"{path} is damaged; remove it, then push again") from error
        if self.values["place"] != place:
            raise Mistake(
                f"{path}: this study was pushed to {self.values['place']}, and this would be "
                f"{place}; set WANDB_ENTITY and WANDB_PROJECT, or remove that file to begin anew"
            )

    def sent(self, run_id: str) -> dict[str, int]:
        """W&B's folders of a run, each with the lines that the server had before it."""
        return self.values["sent"].setdefault(run_id, {})

    def save(self) -> None:
        with writing(self.path) as file:
            file.write((json.dumps(self.values, indent=2) + "\n").encode())


def bring_all(server: Server, ended: Sequence[Kept], done: Done, name: str) -> list[Arrived | None]:
    from tqdm import tqdm

    arrived = []
    with tqdm(ended, name, unit=" runs", leave=False, disable=None) as bar:
        for kept in bar:
            one, line = bring(server, kept, done, name)
            arrived.append(one)
            tqdm.write(f"{kept.id}: {line}")
    return arrived


def bring(server: Server, kept: Kept, done: Done, name: str) -> tuple[Arrived | None, str]:
    """Give the server what it lacks of a run; what it has then, and how that went."""
    arrived, why, recorded = server.look(kept.id), "", set()
    if not lacking(kept, arrived):
        return arrived, "is there already"
    if lacking(kept, arrived) & LATE:
        arrived, why, recorded = upload(server, kept, done, arrived, name)
    if not why:
        arrived = server.wait(kept.id, lambda found: not lacking(kept, found) & LATE)
        again = lacking(kept, arrived)
        if not again:
            return arrived, "has arrived"
        why = mend(server, kept, arrived, name, recorded)
        arrived = server.wait(kept.id, lambda found: not lacking(kept, found) & LATE)
        if not lacking(kept, arrived):
            return arrived, f"has arrived; logged again: {', '.join(sorted(again))}"
    missing = ", ".join(sorted(lacking(kept, arrived)))
    return arrived, f"not there: {missing}{f' ({why})' if why else ''}"


def upload(
    server: Server, kept: Kept, done: Done, arrived: Arrived | None, name: str
) -> tuple[Arrived | None, str, set[int]]:
    """Sync each record once: one that is sent again would double the rows that have arrived.
    What is there then, why not all of it, and the epochs that have been sent.
    """
    sent, epochs = done.sent(kept.id), set()
    if arrived and arrived.lines and not sent:
        return arrived, "", epochs  # by other hands, and nobody knows which records
    for folder in kept.records:
        rows, is_last = read_rows(folder), folder == kept.records[-1]
        if not rows and (arrived or not is_last):
            continue
        lines = arrived.lines if arrived else 0
        before = sent.setdefault(folder.name, lines)
        said = ""
        if lines == before:
            done.save()
            said = sync(server, folder)
        epochs |= {row["epoch"] for row in rows if "val/acc" in row}

        def is_there(found, least: int = before + len(rows), is_last: bool = is_last) -> bool:
            if not found or found.lines >= least:
                return bool(found)
            return is_last and not lacking(kept, found) & LATE

        arrived = server.wait(kept.id, is_there)
        if not arrived or (rows and arrived.lines == before):
            why = f"nothing of {folder.name} arrived, and `wandb sync` ended with: {said}"
            return arrived, why, epochs
        if not is_there(arrived):  # it broke off in the middle
            log_rows(server, kept, rows[arrived.lines - before :], name)
            arrived = server.wait(kept.id, is_there)
    return arrived, "" if arrived else f"no record in {kept.path / 'wandb'}", epochs


def sync(server: Server, folder: Path) -> str:
    """The last line of what the client says; it marks a folder even where nothing arrived."""
    place = ("--entity", server.entity, "--project", server.project)
    said = client("sync", "--include-synced", *place, folder)
    return said.splitlines()[-1].removeprefix("wandb: ")


def into_sweep(
    server: Server, done: Done, name: str, file: Path, there: Sequence[tuple[Kept, Arrived]]
) -> str | None:
    """Make the sweep once, with the runs that have an epoch; later ones join it."""
    if not there:
        return None
    known = done.values["sweep"] or next((one.sweep for _, one in there if one.sweep), None)
    if known:
        join(server, done, name, known, [pair for pair in there if pair[1].sweep != known])
    else:
        priors = [kept.id for kept, _ in there]
        known = make_sweep(server, name, file, priors)
        done.values["joined"] += priors  # W&B's API may list them outside of it (wandb#3347)
    done.values["sweep"] = known
    done.save()
    return known


def make_sweep(server: Server, name: str, file: Path, priors: Sequence[str]) -> str:
    options = ["--name", name, "--entity", server.entity, "--project", server.project]
    for run_id in priors:
        options += ["--prior_run", run_id]
    said = client("sweep", *options, file)
    made = re.search(r"wandb agent '?[^\s/]+/[^\n/]+/([\w-]+)", said)
    if not made:
        raise Failure(f"W&B made no sweep of {file}: {said.splitlines()[-1]}")
    return made[1]


def join(
    server: Server, done: Done, name: str, sweep: str, late: Sequence[tuple[Kept, Arrived]]
) -> None:
    """`wandb sweep` takes prior runs only as it makes a sweep; a run that names one joins it."""
    for kept, arrived in late:
        if kept.id in done.values["joined"]:
            continue
        # What has been sent may not be shown yet; what is missing then is the next push's work.
        sent = {row["epoch"] for row in kept.rows}
        mend(server, kept, arrived, name, sent, sweep=sweep)
        done.values["joined"].append(kept.id)
        done.save()
        taken = server.look(kept.id)
        if not taken or taken.sweep != sweep:
            print(f"{kept.id}: the sweep {sweep} did not take it; it is in the project")
