"""The journal of a study: every trial, written by Optuna, shared by processes and machines."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import locks
from cli import Mistake
from run_folder import new_id

if TYPE_CHECKING:
    import optuna
    from optuna.storages import JournalStorage

STUDY = "sweep"  # its name in the journal


def open_journal(path: Path, direction: str) -> "tuple[optuna.Study, JournalStorage]":
    """Optuna's study, made where there is none, with a `token` of its own; and its storage."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), Lock(path)))
        if not storage.get_all_studies():
            optuna.create_study(storage=storage, study_name=STUDY, direction=direction)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        if "token" not in study.user_attrs:  # new, or its maker was killed between the two lines
            study.set_user_attr("token", new_id()[:4])
        return study, storage
    except (ValueError, KeyError, TypeError, AssertionError, IsADirectoryError) as error:
        raise Mistake(f"{path}: this is no journal of a study ({error})") from error


class Lock:
    """flock: it ends with its process, however that ends. A line that a full disk or a crash has
    cut is taken away, as it would spoil the next one.
    """

    def __init__(self, journal: Path):
        self.journal, self.file = journal, None

    def acquire(self) -> bool:
        self.file = open(self.journal, "ab+")
        locks.wait_for(self.file)
        size = self.file.seek(0, 2)
        self.file.seek(max(size - 1, 0))
        if size and self.file.read(1) != b"\n":
            self.file.seek(0)
            self.file.truncate(self.file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.file.close()
