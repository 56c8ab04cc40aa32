"""The commands of an offline sweep: run, status, confirm, push."""

import shlex
import sys
import time

from agents import places
from cli import Mistake
from confirmation import Confirmation, report, runs_of_seeds
from driver import Driver, Search
from ending import die_of
from standings import Board, best_of, console, sentence, table
from study import ENDS
from study_folder import create, folder_of, load


def run(options, sweep: dict, count: int | None) -> int:
    """Search until `count` trials are done; without a count, until it is told to end."""
    slots = places(options.workers, options.devices)
    study = create(options.dir or folder_of(sweep, options.file), sweep)
    study.count = count
    search = Search(study, count)
    board = Board(study, time.monotonic)
    rule = sweep.get("early_terminate")
    status = drive(Driver(study, search, rule, slots, options.max_failures, board), board)
    if search.target_reached:
        print(f"{study.metric} has reached its target, {search.target:g}: no more trials are begun")
    standings = study.standings()
    best = best_of(standings, study.goal)
    if best:
        folder = shlex.quote(str(study.folder))
        print(f"the best run: {best.job.place}")
        print(f"next: python sweep.py confirm {folder}; or hand it to W&B: … push {folder}")
    elif standings and all(one.state in ENDS for one in standings):
        print(f"no trial has a {study.metric}", file=sys.stderr)
        status = 1
    return status


def drive(driver: Driver, board: Board) -> int:
    with board:
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
    slots = places(options.workers, options.devices)
    study = load(options.dir)
    confirmation = Confirmation(study, options.top, options.seeds)
    board = Board(study, time.monotonic, lives=False)  # its table has the trials of the search
    driver = Driver(study, confirmation, None, slots, options.max_failures, board)
    status = drive(driver, board)
    print(report(study, confirmation))
    return status or int(not any(one.values for one in confirmation.results()))


def push(options) -> int:
    from push import Handed, push

    study = load(options.dir)
    standings = study.standings()
    trials = [one for one in standings if one.state in ENDS or one.job.run.is_dir()]
    if not trials:
        raise Mistake(f"{study.folder}: no trial has begun, there is nothing to push")
    handed = Handed(
        study.name,
        trials=[one.job.run for one in trials],
        ended=[one.job.run for one in trials if one.state in ENDS],
        seeds=[path for one in trials for path in runs_of_seeds(one.job)],
    )
    return push(handed, study.folder / "sweep.yaml", study.folder / "pushed.json")
