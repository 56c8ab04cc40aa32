"""The run in Weights & Biases: online with a login, offline without one; it never ends a training.

Every call that sends something goes through `Tracker._safely`: whatever it raises becomes one line,
and the training goes on. The numbers are also in `history.csv`, so nothing is lost.
"""

import io
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import records
from cli import DISK_FULL, Mistake, Parser
from config import Config, to_dict
from suggestion import is_added
from wandb_client import (
    claim_environment,
    client_of,
    end_service,
    reason_of,
    release_environment,
)

if TYPE_CHECKING:
    from mistakes import Explained

PROJECT = "tinysweep"
REFUSED, PROJECT_MAX = "/\\#?%:", 128  # by W&B, in a project's name
INIT_TIMEOUT_S = 60
TRIES, PAUSE_S = 4, 10.0  # of an artifact that the client refused, a minute in all
MISTAKE_COLUMNS = [
    "image",
    "Grad-CAM of the predicted class",
    "Grad-CAM of the true class",
    "true",
    "predicted",
    "confidence",
    "loss",
    "file",
]


def check_project(project: str | None = None, key: str = "WANDB_PROJECT") -> None:
    """Before anything is begun: the client would refuse it in the middle of the start."""
    project = os.environ.get("WANDB_PROJECT", PROJECT) if project is None else project
    if set(project) & set(REFUSED) or len(project) > PROJECT_MAX:
        raise Mistake(
            f"{key}={project[:60]!r} must have none of {' '.join(REFUSED)} and at most "
            f"{PROJECT_MAX} characters; the entity has a place of its own"
        )


def name_of(config: Config) -> str:
    return f"lr{config.max_lr:g}-aug{config.aug_strength:g}"


class Tracker:
    """One W&B run. W&B's thread calls `stop` when the app or the agent asks the run to stop."""

    def __init__(
        self,
        config: Config,
        run_id: str,
        folder: Path,
        stop: Callable[[], None],
        job_type: str = "train",
    ):
        import wandb

        self._wandb = wandb
        self.pictures, self.picture_bytes = 0, 0  # files handed over, their size
        self._failures: Counter[tuple[str, str]] = Counter()
        claim_environment(folder)
        name = name_of(config) if job_type == "train" else run_id
        about = {"id": run_id, "name": name, "job_type": job_type, "config": to_dict(config)}
        self.run = self._start(about, stop)
        self._safely("define_metric", self._define_metrics)

    def _start(self, about: dict[str, Any], stop: Callable[[], None]):
        project = os.environ.get("WANDB_PROJECT", PROJECT)

        def init(mode: str | None):
            settings = self._settings(stop)
            return self._wandb.init(
                **about, project=project, resume="allow", mode=mode, settings=settings
            )

        mode = os.environ.get("WANDB_MODE")
        if mode == "offline":
            return self._start_offline(init)
        try:
            # Without asking the server: `init` does, and there a dead one is waited for.
            known = mode is not None or self._wandb.login(prompt=False, verify=False)
            return init(mode if known else "offline")
        # Whatever it is: a tracker must not keep a training from its start; the line tells.
        except Exception as error:
            told = f"W&B cannot be reached ({reason_of(error)}): this run is tracked offline"
            print(told, flush=True)
            end_service()  # it believes that the run of this id has begun
            return self._start_offline(init)

    def _start_offline(self, init: Callable[[str], Any]):
        try:
            return init("offline")
        # Whatever it is (no process for W&B's service, no place for its files): see above.
        except Exception as error:
            told = f"W&B cannot be started ({reason_of(error)}): this run is not tracked"
            print(told, flush=True)
            return init("disabled")

    def _settings(self, stop: Callable[[], None]):
        return self._wandb.Settings(
            stop_fn=stop,
            init_timeout=INIT_TIMEOUT_S,
            x_transaction_log_flush_interval=1.0,
        )

    @property
    def offline(self) -> bool:
        return bool(self.run.settings._offline)

    def config(self) -> dict[str, Any]:
        """What W&B shows: the given config with the sweep's parameters over it, which the client
        reads where it is disabled, too, and what a resumed run finds there.
        """
        return dict(self.run.config)

    def name_after(self, config: Config) -> None:
        """In a sweep whose command passes no parameters these are known only now."""
        self._safely("name", setattr, self.run, "name", name_of(config))

    def say_where(self) -> None:
        former = [record for record in self._former_records() if not records.is_synced(record)]
        if self.offline:
            call = records.handing_over([*former, self._record], self.run.id)
            print(f"W&B: offline; hand the run over later with `{call}`")
        elif self.run.url:
            print(f"W&B: {self.run.url}")
            if former:
                call = records.handing_over(former, self.run.id)
                print(f"W&B: a part of it was tracked offline; hand that over with `{call}`")

    @property
    def _record(self) -> Path:
        return Path(self.run.dir).parent

    def _former_records(self) -> list[Path]:
        found = records.of_run(self._record.parent, self.run.id)
        return [record for record in found if record != self._record]

    def catch_up(self, rows: Sequence[dict[str, Any]]) -> None:
        """Log the epochs of former starts that W&B does not have: its client keeps a second of
        them, and online 15, before they are written or sent, and dies with a run that is killed.
        """

        def log_missing() -> None:
            sent = self.run.summary.get("epoch") or 0  # online: as the server has it
            if sent >= rows[-1]["epoch"]:
                return
            former = self._former_records()
            if self.offline:  # what was tracked online has been sent, but for its last seconds
                former += records.of_run(self._record.parent, self.run.id, online=True)
            lines = [row for record in former for row in records.read_rows(record)]
            kept = {row["epoch"] for row in lines if "val/acc" in row}
            for row in rows:
                if row["epoch"] > sent and row["epoch"] not in kept:
                    self.run.log(row)

        if not self.run.disabled:
            self._safely("what a former start had not sent", log_missing)

    def _define_metrics(self) -> None:
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric("train/step")
        self.run.define_metric("train/lr_step", step_metric="train/step")

    def log(self, values: dict[str, Any]) -> None:
        self._safely("log", self.run.log, values)

    def summarize(self, values: dict[str, Any]) -> None:
        self._safely("summary", self.run.summary.update, values)

    def add_config(self, values: dict[str, Any]) -> None:
        assert all(map(is_added, values)), values
        self._safely("config", self.run.config.update, values, allow_val_change=True)

    def log_picture(self, key: str, path: Path) -> None:
        """Alone, so that a picture that fails takes no numbers with it."""

        def upload() -> None:
            self.run.log({key: self._wandb.Image(str(path))})
            self._count(path.stat().st_size)

        self._safely(key, upload)

    def log_mistakes(
        self, mistakes: Sequence["Explained"], check: Callable[[], None] = lambda: None
    ) -> None:
        """The table `val/mistakes`, one row a mistake."""

        def picture(image, sizes: list[int]):
            if image is None:
                return None
            bytes_of = io.BytesIO()
            image.save(bytes_of, "JPEG")  # as the client does it
            sizes.append(bytes_of.tell())
            return self._wandb.Image(image, file_type="jpg")

        def upload() -> None:
            table, sizes = self._wandb.Table(columns=MISTAKE_COLUMNS), []
            for one in mistakes:
                images = one.image, one.map_predicted, one.map_true
                words = one.true, one.predicted, one.confidence, one.loss, one.file
                table.add_data(*(picture(image, sizes) for image in images), *words)
            self.run.log({"val/mistakes": table})
            for size in sizes:
                self._count(size)

        self._surely("the table of mistakes", upload, check)

    def log_model(
        self, path: Path, metadata: dict[str, Any], check: Callable[[], None] = lambda: None
    ) -> None:
        def upload() -> None:
            artifact = self._wandb.Artifact(f"model-{self.run.id}", type="model", metadata=metadata)
            # As it lies in the run's folder; after the ending nobody changes it. No copy is made.
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact, aliases=["best", "latest"])

        self._surely("the model artifact", upload, check)

    def mark_preempting(self) -> None:
        self._safely("mark_preempting", self.run.mark_preempting)

    def finish(self, exit_code: int) -> None:
        folder = self._record
        error = self._safely("finish", self.run.finish, exit_code=exit_code)
        if isinstance(error, TimeoutError):
            call = f"wandb sync --include-online {shlex.quote(str(folder))}"
            print(f"W&B: not all of this run has arrived; hand over the rest with `{call}`")
        for (what, kind), times in self._failures.items():
            if times > 1:
                print(f"W&B: {what} failed {times:,} times ({kind})", flush=True)
        release_environment()

    def _count(self, size: int) -> None:
        self.pictures += 1
        self.picture_bytes += size

    def _safely(self, what: str, call: Callable, *arguments: Any, **named: Any) -> Exception | None:
        """What it has raised, if anything."""
        try:
            call(*arguments, **named)
            return None
        # Whatever it is: a tracker that fails must not cost hours of training; the line tells.
        except Exception as error:
            kind = type(error).__name__
            self._failures[what, kind] += 1
            if self._failures[what, kind] == 1:  # a dead service fails at every step
                print(f"W&B: {what} failed, the run goes on ({kind}: {error})", flush=True)
            return error

    def _surely(self, what: str, call: Callable[[], None], check: Callable[[], None]) -> None:
        """For artifacts: where the server is away at the first one of a process, the client raises
        and forgets it. `check` may end the wait. (A full disk is not waited for.)
        """
        for again in range(TRIES):
            if again:
                print(f"W&B: {what} is tried again in {PAUSE_S:.0f} s", flush=True)
                until = time.monotonic() + PAUSE_S
                while time.monotonic() < until:
                    check()
                    time.sleep(0.1)
            error = self._safely(what, call)
            if error is None or getattr(error, "errno", None) in DISK_FULL:
                return


def refuse_suggestion(arguments: Sequence[str]) -> None:
    """In a sweep let a run fail of a mistake in the call: a suggestion that no run claims would be
    handed out again.
    """
    from run_folder import choose_id

    parser = Parser(add_help=False)
    parser.add_argument("--run_id")
    parser.add_argument("--output_dir", default=Config.output_dir)
    options, _ = parser.parse_known_args(arguments)
    run_id = choose_id(os.environ.get("WANDB_RUN_ID") or options.run_id)
    folder = Path(options.output_dir) / run_id
    with client_of(folder):
        Tracker(Config(), run_id, folder, lambda: None).finish(exit_code=2)
