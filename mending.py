"""Log again, online, what W&B's server lacks of a run that has ended: from the run's own files."""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrived import MODEL, PICTURES, TABLE, Arrived, Kept, Server, lacking
from cli import Failure, Mistake
from config import from_mapping
from tracking import INIT_TIMEOUT_S, Tracker

if TYPE_CHECKING:
    from mistakes import Explained


def mend(
    server: Server,
    kept: Kept,
    arrived: Arrived,
    name: str,
    recorded: Set[int] = frozenset(),
    sweep: str | None = None,
) -> str:
    """Log again what the server lacks, and only that; tells what could not be. The epochs in
    `recorded` have been sent: the server may only not show them yet.
    """
    again = lacking(kept, arrived)
    for picture in kept.pictures.keys() - arrived.files:
        server.upload(kept.id, picture, kept.pictures[picture])
    mistakes, cannot = [], {}
    if TABLE in again:
        mistakes, cannot[TABLE] = draw_mistakes(kept)
    best = kept.path / "best.pt"
    if MODEL in again and not best.is_file():
        cannot[MODEL] = f"{best} is missing"
    why = "; ".join(filter(None, cannot.values()))
    if not sweep and again <= {PICTURES, *(what for what in cannot if cannot[what])}:
        return why
    with reopened(server, kept, name, sweep) as tracker:
        for row in kept.rows:
            if row["epoch"] not in arrived.epochs | recorded:
                tracker.log(row)
        tracker.summarize({k: v for k, v in kept.summary.items() if k != "run_id"})
        if MODEL in again and MODEL not in cannot:
            reached = {key: kept.summary[key] for key in ("best_val_acc", "best_epoch")}
            tracker.log_model(best, {**kept.config, **reached})
        if mistakes:
            tracker.log_mistakes(mistakes)
    return why


def log_rows(server: Server, kept: Kept, rows: Sequence[dict[str, Any]], name: str) -> None:
    """Rows of a record as they are there; what they say of pictures stays true of the files."""
    with reopened(server, kept, name) as tracker:
        for row in rows:
            tracker.log(nested({k: v for k, v in row.items() if not k.startswith("_")}))


def nested(row: dict[str, Any]) -> dict[str, Any]:
    """`val/gradcam.path` is the `path` of `val/gradcam`."""
    told: dict[str, Any] = {}
    for key, value in row.items():
        outer, _, inner = key.partition(".")
        if inner:
            told.setdefault(outer, {})[inner] = value
        else:
            told[key] = value
    return told


@contextmanager
def reopened(
    server: Server, kept: Kept, name: str, sweep: str | None = None
) -> Iterator["Reopened"]:
    tracker = Reopened(server, kept, name, sweep)
    try:
        yield tracker
    finally:
        tracker.finish(kept.exit_code)


class Reopened(Tracker):
    """A run of before, online; of this process it tells nothing."""

    def __init__(self, server: Server, kept: Kept, name: str, sweep: str | None):
        config = from_mapping(kept.config, source=str(kept.path / "config.yaml"))
        self.place = {"entity": server.entity, "project": server.project, "group": name}
        self.sweep = sweep
        super().__init__(config, kept.id, kept.path, stop=lambda: None)

    def _start(self, about: dict[str, Any], stop):
        settings = self._settings(stop)
        place = {**about, **self.place}
        return self._wandb.init(**place, resume="must", mode="online", settings=settings)

    def _settings(self, stop):
        return self._wandb.Settings(
            stop_fn=stop,
            init_timeout=INIT_TIMEOUT_S,
            sweep_id=self.sweep,
            console="off",
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )


def draw_mistakes(kept: Kept) -> tuple[list["Explained"], str]:
    """As the run did at its end, from best.pt and the data; or why that cannot be."""
    from mistakes import explain_mistakes
    from record import load_weights, open_run, read_predictions

    try:
        if not Path(kept.config["data_dir"]).is_dir():
            raise Mistake(f"the data folder {kept.config['data_dir']} is not here")
        config, data, learner = open_run(kept.path, {})
        predictions = read_predictions(
            kept.path, data, load_weights(learner, kept.path / "best.pt")
        )
        seed = config.split_seed
        count = config.mistakes
        return explain_mistakes(learner, data, predictions, count, seed, lambda: None), ""
    except (Mistake, Failure, RuntimeError, OSError) as error:
        return [], f"cannot be drawn again: {error}"
