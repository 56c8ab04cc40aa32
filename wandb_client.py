"""W&B's client around a run: its import, its service, and the settings that it finds there."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from cli import Mistake

FINISH_TIMEOUT_S = 600  # 45 MB at 1 Mbit/s need 6 minutes; the client itself tries for a week

_claimed: set[str] = set()  # what `claim_environment` has set
_runs_before = 0  # of this process


@contextlib.contextmanager
def client_of(folder: Path) -> Iterator[None]:
    """W&B's client with the settings of the run in this folder: it keeps those of the first run of
    a process, unless it is told to forget them.
    """
    global _runs_before
    if _runs_before:
        end_service()
    _runs_before += 1
    claim_environment(folder)
    try:
        yield
    finally:
        release_environment()


def claim_environment(folder: Path) -> None:
    """What W&B's client is to find there, where the user has said nothing else; it looks once, as
    its service starts.
    """
    wandb = folder.resolve() / "wandb"
    wanted = {
        "WANDB_FINISH_TIMEOUT": str(FINISH_TIMEOUT_S),
        "WANDB_FINISH_TIMEOUT_RAISES": "true",
        "WANDB_DIR": str(wandb.parent),
        # Here the client stages what a table holds, and never cleans up: so not at home.
        "WANDB_DATA_DIR": str(wandb / "staging"),
    }
    ours = {key: value for key, value in wanted.items() if key in _claimed or key not in os.environ}
    os.environ.update(ours)
    _claimed.update(ours)


def release_environment() -> None:
    while _claimed:
        os.environ.pop(_claimed.pop(), None)


def import_client() -> None:
    """W&B's client whole, as `wandb.init` will import it. Call it before torch is imported:
    pydantic searches all modules that are there for each of its classes, and torch and timm are
    2,000.
    """
    import wandb.apis.public

    assert wandb.apis.public
    # On a full disk Python would print a page for each line of the client's own log.
    logging.raiseExceptions = False


def check_settings() -> None:
    """A Mistake for a variable that the client would refuse in the middle of a start."""
    given = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    if not given:
        return  # nor is the client imported
    import wandb

    settings = wandb.Settings()
    for key, value in given.items():
        try:
            settings.update_from_env_vars({key: value})
        except ValueError as error:  # pydantic's: lines, of which one is the reason [and more]
            reason, *_ = re.findall(r"^ *(.+) \[type=", str(error), re.M) or [error]
            raise Mistake(f"W&B's client refuses {key}: {reason}") from error


def start_service() -> threading.Thread:
    """Let W&B's service start beside what follows: `wandb.init` would wait for it, a quarter of a
    second. What fails here fails there again, and is said there.
    """
    import wandb

    def start() -> None:
        with contextlib.suppress(Exception):
            wandb.setup()

    thread = threading.Thread(target=start, name="start of W&B's service", daemon=True)
    thread.start()
    return thread


def end_service() -> None:
    import wandb

    try:
        wandb.teardown()
    except (Exception, SystemExit) as error:  # the status of a service that ended badly
        print(f"W&B: its service has failed ({error})", flush=True)


def reason_of(error: Exception) -> str:
    """Its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
