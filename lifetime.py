"""A run from its checks to its end, whichever that is.

What is done in between, epoch by epoch, is train.py's and comes as an argument: `train_epochs`.
"""

from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import suggestion
from cli import Failure, Mistake, say_last
from config import Config
from ending import EXIT_CODES, STATES, Ended, Ending, as_failure, to_go_on, workers_may_end
from ranks import Ranks
from run_folder import RunFolder, compare_configs, is_in_use, read_config, read_summary

if TYPE_CHECKING:
    from tracking import Tracker
    from training import Training

NOTHING_TO_DO = "{} is finished: nothing to do"
Epochs = Callable[["Training", "Tracker | None", Callable[[], None]], None]


def begin_or_go_on(
    train_epochs: Epochs, config: Config, folder: Path, ranks: Ranks, ending: Ending
) -> dict[str, Any]:
    """By the first process: `help_out` is for the others."""
    from tracking import Tracker
    from training import prepare

    if not (suggestion.in_sweep() or ranks.several) and is_finished(folder, config):
        return read_summary(folder)
    tracker = None

    def start_tracker() -> Tracker:
        return Tracker(config, folder.name, folder, lambda: ending.ask("stop"))

    if suggestion.in_sweep():  # first of all: a suggestion that no run claims is handed out again
        tracker = start_tracker()
        try:
            config = suggestion.over(tracker.config())
            tracker.name_after(config)
        except Mistake:
            tracker.finish(exit_code=2)
            raise
    # A run that has begun has a summary to write: `carry_out` hears the request.
    begun = (folder / "config.yaml").is_file()
    check = (lambda: None) if begun else ending.check_unbegun
    try:
        training = prepare(config, ranks, folder.name, tracker is None, check)
        state = training.folder.state()
        if state != "finished":
            training.begin()
    except Ended as ended:
        return leave_unbegun(folder, begun, tracker, ended.request)
    except (Mistake, MemoryError, RuntimeError, OSError) as problem:
        # SIGTERM to the whole group ends who decodes, too.
        if isinstance(problem, BrokenExecutor) and ending.settle():
            return leave_unbegun(folder, begun, tracker, ending.request)
        if tracker:
            tracker.finish(exit_code=2 if isinstance(problem, Mistake) else 1)
        raise as_failure(problem, folder) from problem
    if ranks.share(state == "finished"):
        print(NOTHING_TO_DO.format(folder))
        summary = read_summary(folder)
        training.folder.close()
        if tracker:
            end_tracker(tracker, summary, exit_code=0)
        return summary
    tracker = tracker or start_tracker()
    if training.record.rows and (state is None or not tracker.offline):
        tracker.catch_up(training.record.rows)
    return carry_out(train_epochs, training, tracker, ending)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether there is nothing to do, with no look at the data; then that is said."""
    if read_summary(folder).get("state") != "finished" or is_in_use(folder):
        return False
    path = folder / "config.yaml"
    compare_configs(read_config(path), config, path)
    print(NOTHING_TO_DO.format(folder))
    return True


def leave_unbegun(
    folder: Path, begun: bool, tracker: "Tracker | None", request: str
) -> dict[str, Any]:
    """Ended while its data are made ready. A stop counts: of a run that has not `begun` there is a
    summary then; of one that has there is what its last start left.
    """
    state, code = STATES[request], EXIT_CODES[request]
    summary = {"state": state, "epochs": 0, "run_id": folder.name}
    try:
        if request == "stop" and not begun:
            with closing(RunFolder(folder.parent, folder.name)) as held:
                held.write_summary(summary)
    except OSError as error:
        code = 1
        raise as_failure(error, folder) from error
    finally:
        if tracker:
            if request == "preempt":
                tracker.mark_preempting()
            tracker.summarize({"state": state})
            tracker.finish(code)
    say_last(f"{state} before its beginning")
    return summary


def carry_out(
    train_epochs: Epochs, training: "Training", tracker: "Tracker", ending: Ending
) -> dict[str, Any]:
    """Train and end, in whichever way; every way leaves a summary and a finished W&B run."""
    state, code = "failed", 1
    try:
        with workers_may_end(ending):
            ending.check_together()
            training.say_what(tracker)
            train_epochs(training, tracker, ending.check_together)
            training.end(tracker, ending.check)
        state, code = "finished", 0
    except Ended as ended:
        state, code = STATES[ended.request], EXIT_CODES[ended.request]
        if ended.request == "preempt":
            tracker.mark_preempting()
    except Mistake as mistake:  # a file of the run has gone, or is damaged: not of the call's
        raise Failure(str(mistake)) from mistake
    except (MemoryError, RuntimeError, OSError) as error:
        raise as_failure(error, training.path) from error
    finally:
        summary = write_down_the_end(training, tracker, state, code)
    again = f"; {to_go_on(training.path)}" if state in ("preempted", "interrupted") else ""
    say_last(f"{state}: {training.path}{again}")
    return summary


def write_down_the_end(
    training: "Training", tracker: "Tracker", state: str, code: int
) -> dict[str, Any]:
    summary = training.record.summary(state)
    try:
        training.folder.write_summary(summary)
    except OSError as error:
        code = code or 1
        if state != "failed":  # what has failed is on its way to the user
            raise as_failure(error, training.path) from error
    finally:
        end_tracker(tracker, summary, code)
        training.folder.close()
    return summary


def end_tracker(tracker: "Tracker", summary: dict[str, Any], exit_code: int) -> None:
    tracker.summarize({key: value for key, value in summary.items() if key != "run_id"})
    tracker.finish(exit_code)


def help_out(train_epochs: Epochs, ranks: Ranks, ending: Ending) -> dict[str, Any]:
    """Train and measure a part of each batch; the first process keeps, tells and ends."""
    from training import prepare

    training = prepare(None, ranks)
    if ranks.share(None):  # the run is finished
        return {}
    try:
        with workers_may_end(ending):
            ending.check_together()
            train_epochs(training, None, ending.check_together)
    except Ended:
        pass  # by a signal, if at all, the first one dies: it has more to do until then
    except (MemoryError, RuntimeError, OSError) as error:
        failure = as_failure(error, training.path)
        if isinstance(failure, Failure) and failure.said_by_all:
            ranks.outlast_first()
        raise failure from error
    return {}
