"""The run in Weights & Biases: online with a login, offline without one; it never ends a training.

Every call to the client goes through `Tracker._safely`: whatever it raises becomes one line, and
the training goes on. The numbers are also in `history.csv`, so nothing is lost.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config import Config, to_dict

PROJECT = "tinysweep"
INIT_TIMEOUT_S = 60


def in_sweep() -> bool:
    return bool(os.environ.get("WANDB_SWEEP_PARAM_PATH") or os.environ.get("WANDB_SWEEP_ID"))


class Tracker:
    """One W&B run. W&B's thread calls `stop` when the app or the agent asks the run to stop."""

    def __init__(self, config: Config, run_id: str, folder: Path, stop: Callable[[], None]):
        import wandb

        self._wandb = wandb
        os.environ.setdefault("WANDB_DIR", str(folder.resolve()))
        self.run = self._start(config, run_id, stop)
        self._safely("define_metric", self._define_metrics)

    def _start(self, config: Config, run_id: str, stop: Callable[[], None]):
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not self._wandb.login(prompt=False):
            mode = "offline"
        arguments = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "id": run_id,
            "name": f"lr{config.max_lr:g}-aug{config.aug_strength:g}",
            "config": to_dict(config),
            "resume": "allow",
        }
        try:
            return self._wandb.init(**arguments, mode=mode, settings=self._settings(stop))
        except (self._wandb.errors.CommError, self._wandb.errors.UsageError, OSError) as error:
            if mode == "offline":
                raise
            reason = str(error).strip().splitlines()[0]
            print(f"W&B cannot be reached ({reason}): this run is tracked offline", flush=True)
            return self._wandb.init(**arguments, mode="offline", settings=self._settings(stop))

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
        """What W&B shows: the given config with the sweep's parameters over it."""
        return {
            key: value for key, value in dict(self.run.config).items() if not key.startswith("_")
        }

    def say_where(self) -> None:
        if self.offline:
            folder = Path(self.run.dir).parent
            print(f"W&B: offline; hand the run over later with `wandb sync {folder}`")
        elif self.run.url:
            print(f"W&B: {self.run.url}")

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
        self._safely("config", self.run.config.update, values, allow_val_change=True)

    def log_model(self, path: Path, metadata: dict[str, Any]) -> None:
        def upload() -> None:
            artifact = self._wandb.Artifact(f"model-{self.run.id}", type="model", metadata=metadata)
            artifact.add_file(str(path))
            self.run.log_artifact(artifact, aliases=["best", "latest"])

        self._safely("the model artifact", upload)

    def mark_preempting(self) -> None:
        self._safely("mark_preempting", self.run.mark_preempting)

    def finish(self, exit_code: int) -> None:
        self._safely("finish", self.run.finish, exit_code=exit_code)

    def _safely(self, what: str, call: Callable, *arguments: Any, **named: Any) -> None:
        try:
            call(*arguments, **named)
        # Whatever it is: a tracker that fails must not cost hours of training; the line tells.
        except Exception as error:
            print(
                f"W&B: {what} failed, the run goes on ({type(error).__name__}: {error})", flush=True
            )
