"""What a run has reached so far, in memory and in its folder: history, best epoch, checkpoints.

An epoch is written as predictions.npz, best.pt, last.pt, history.csv; run_folder.py says how.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

import checkpoint
from cli import Mistake
from config import WITH_A_RUN, Config, from_mapping, to_dict
from ranks import ALONE, Ranks
from run_folder import RunFolder, compare_configs, read_arrays, read_config

if TYPE_CHECKING:
    from data import Data
    from learner import Learner
    from measures import Evaluation

OTHER_ORDER = (
    "the data folder has the same images in another order, or with other labels (val/ or wnids.txt "
    "sorted otherwise?); lay it out as it was"
)
HALF_KEPT = "it was killed while it kept an epoch; go on with the run first"


class Record:
    """`folder` is None in a process that only helps with a run; it keeps nothing."""

    def __init__(self, config: Config, data: "Data", folder: RunFolder | None):
        self.config, self.data, self.folder = config, data, folder
        self.rows: list[dict[str, Any]] = []  # of history.csv, one an epoch
        self.best: dict[str, Any] = {"best_val_acc": -1.0, "best_epoch": 0}

    def resume(self, learner: "Learner") -> None:
        """Take up the last whole epoch, where there is one."""
        state = learner.ranks.share(self._last() if self.folder else None)
        if state:
            learner.load_state_dict(state)
            self.rows, self.best = state["history"], state["best"]
        if self.folder:
            self.folder.settle(self.best["best_epoch"])

    def _last(self) -> dict[str, Any] | None:
        path = self.folder.path / "last.pt"
        if not path.exists():
            return None
        keys = (*checkpoint.KEYS, "average", "optimizer", "schedule", "history", "best")
        state = checkpoint.load(path, keys)
        compare_configs(state["config"], self.config, path)
        check_split(path, state.get("split", self.data.fingerprint), self.data)
        if state.get("order", self.data.order) != self.data.order:
            raise Mistake(f"{path}: {OTHER_ORDER}")
        return state

    def keep(self, row: dict[str, Any], measured: "Evaluation", learner: "Learner") -> None:
        """Write down an epoch."""
        rows, best = [*self.rows, row], self.best
        config, epoch = to_dict(self.config), row["epoch"]
        if max(rows, key=worth) is row:
            best = {"best_val_acc": measured.acc, "best_epoch": epoch}
            self._write_predictions(measured, epoch)
            state = {"model": learner.evaluated.state_dict(), "config": config, "epoch": epoch}
            self.folder.write_for(epoch, "best.pt", lambda file: checkpoint.save(state, file))
        state = {
            **learner.state_dict(),
            "config": config,
            "split": self.data.fingerprint,
            "order": self.data.order,
            "epoch": epoch,
            "history": rows,
            "best": best,
        }
        self.folder.write("last.pt", lambda file: checkpoint.save(state, file))
        self.folder.settle(best["best_epoch"])
        self.rows, self.best = rows, best  # not before: an epoch that is not kept did not happen
        self.folder.write_history(self.rows)

    def _write_predictions(self, measured: "Evaluation", epoch: int) -> None:
        arrays = {
            "index": self.data.val,
            "file": self.data.cache.files[self.data.val],
            "true": measured.true,
            "predicted": measured.predicted,
            "confidence": measured.confidence,
            "cam_energy": measured.looks.energy,  # NaN where the box tells nothing
            "cam_pointing": measured.looks.pointing,
            "fingerprint": np.array(self.data.fingerprint),
            "epoch": np.array(epoch),
        }
        self.folder.write_for(epoch, "predictions.npz", lambda file: _write_npz(file, arrays))

    def summary(self, state: str) -> dict[str, Any]:
        last = self.rows[-1] if self.rows else {}
        best = self.best if self.rows else {}
        counts = {"state": state, "epochs": len(self.rows), "run_id": self.folder.run_id}
        return {**last, **best, **counts}


def worth(row: dict[str, Any]) -> tuple[float, float]:
    """Of an epoch, for the choice of the best: what was reached with smaller images is nothing to
    what larger ones reached.
    """
    return row.get("pixels", 0), row["val/acc"]


def _write_npz(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """numpy's own `savez` cannot store an array of the name `file`."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def check_split(path: Path, fingerprint: str, data: "Data") -> None:
    if fingerprint != data.fingerprint:
        raise Mistake(
            f"{path} is of the split {fingerprint}, and the data folder gives {data.fingerprint}: "
            "other images; bring them back, or give another --data_dir"
        )


def read_predictions(folder: Path, data: "Data", epoch: int | None = None) -> dict[str, np.ndarray]:
    """predictions.npz, if it is of these images in this order, and of the weights of this epoch."""
    predictions = read_arrays(folder / "predictions.npz")
    check_split(folder, str(predictions["fingerprint"]), data)
    now = {"index": data.val, "true": data.labels[data.val]}
    if not all(np.array_equal(predictions[name], values) for name, values in now.items()):
        raise Mistake(f"{folder}: {OTHER_ORDER}")
    if epoch not in (None, predictions["epoch"]):
        raise Mistake(f"{folder}: {HALF_KEPT}")
    return predictions


def load_data(
    config: Config,
    meanwhile: Callable[[], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> "Data":
    import data as datasets

    data_dir = Path(config.data_dir)
    return datasets.load(
        config.dataset,
        data_dir,
        config.split,
        config.val_fraction,
        config.split_seed,
        config.center_crop,
        meanwhile,
        check,
    )


def open_run(
    path: Path, given: dict[str, Any], ranks: Ranks = ALONE
) -> tuple[Config, "Data", "Learner"]:
    """A run that was made before, for a look at it; `given` may say where and how to look."""
    from learner import Learner

    for key in given:
        if key not in WITH_A_RUN:
            allowed = ", ".join(WITH_A_RUN)
            raise Mistake(f"{path} has its own {key}; only {allowed} may be given with a run")
    if not (path / "config.yaml").is_file():
        raise Mistake(f"{path} is no run's folder: it has no config.yaml")
    values = read_config(path / "config.yaml")
    plainly = {"compile": "false"}  # nothing is trained, and here may be no compiler
    config = from_mapping({**values, **plainly, **given}, source=str(path / "config.yaml"))
    with ranks.first_of_machine():
        data = load_data(config)
    if (path / "predictions.npz").is_file():
        read_predictions(path, data)
    return config, data, Learner(config, data, 1, ranks, trains=False)


def load_weights(learner: "Learner", path: Path) -> int:
    """Give `learner.evaluated` the weights of best.pt or last.pt, at the pixels of their epoch,
    which is returned.
    """
    state = checkpoint.load(path, checkpoint.KEYS)
    if learner.average and "average" in state:
        learner.average.load_state_dict(state["average"])
    else:
        learner.evaluated.load_state_dict(state["model"])
    learner.be_after(state["epoch"])
    return state["epoch"]
