"""The commands of an offline sweep: run, status, confirm, push."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from agents import places
from cli import Mistake
from confirmation import Confirmation, report
from driver import Driver, Search, Source
from ending import die_of
from standings import Board, best_of, console, sentence, table
from study import Study, create, folder_of, load


def run(options, sweep: dict, count: int | None) -> int:
    """Search until `count` trials are done; without a count, until it is told to end."""
    study = create(options.dir or folder_of(sweep, options.file), sweep)
    study.count = count
    status = drive(study, Search(study, count), options, sweep.get("early_terminate"))
    best = best_of(study.standings(), study.goal)
    if best:
        folder = shlex.quote(str(study.folder))
        print(f"the best run: {best.job.place}")
        print(f"next: python sweep.py confirm {folder}; or hand it to W&B: … push {folder}")
    return status


def drive(study: Study, source: Source, options, rule: dict | None = None) -> int:
    with Board(study, time.monotonic) as board:
        slots = places(options.workers, options.devices)
        driver = Driver(study, source, rule, slots, options.max_failures, board)
        driver.listen()
        status = driver.run()
    if driver.request:
        die_of(driver.request)
    return status


def status(options) -> int:
    study = load(options.dir)
    standings = study.standings()
    out = console()
    out.print(table(study, standings))
    out.print(sentence(study, standings), markup=False)
    for one in standings:
        if one.error:
            out.print(f"trial {one.job.key} failed: {' | '.join(one.error)}", markup=False)
    return 0


def confirm(options) -> int:
    study = load(options.dir)
    confirmation = Confirmation(study, options.top, options.seeds)
    status = drive(study, confirmation, options)
    print(report(study, confirmation))
    return status or int(not confirmation.results())


def push(options) -> int:
    from push import push

    study = load(options.dir)
    standings = study.standings()
    runs: Sequence[Path] = [one.job.run for one in standings if one.job.run.is_dir()]
    if not runs:
        raise Mistake(f"{study.folder}: no trial has begun, there is nothing to push")
    return push(study.name, runs, study.folder / "sweep.yaml", study.folder / "pushed.json")
