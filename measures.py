"""What is counted while a model trains and is measured: sums over images, divided at the end."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli import Failure
from ranks import ALONE, Ranks

if TYPE_CHECKING:  # --help does not wait for them
    import numpy as np
    from torch import Tensor

    from localisation import Looks


# What a run logs once an epoch (those of localisation where there are boxes), and at its end.
METRICS = (
    "epoch",
    "lr",
    "pixels",
    "train/loss",
    "train/acc",
    "val/loss",
    "val/acc",
    "val/top5",
    "val/cam_energy",
    "val/cam_energy_lift",
    "val/cam_pointing",
    "val/cam_pointing_lift",
    "val/cam_images",
    "time/images_per_s",
    "time/epoch_s",
    "time/loader_wait",
)
SUMMARY = ("best_val_acc", "best_epoch")


class Diverged(Failure):
    said_by_all = True


class Tally:
    """Loss and right answers of an epoch so far; every so many steps it looks at the device."""

    def __init__(self, epoch: int, hold: int, ranks: Ranks = ALONE):
        self.epoch, self.hold, self.ranks = epoch, hold, ranks
        self.held: list[tuple] = []  # what was not looked at yet
        self.loss, self.right, self.seen, self.steps = 0.0, 0.0, 0, 0
        self.last_loss: float | None = None

    def add(self, loss: "Tensor", right: "Tensor", images: int, lr: float) -> None:
        self.held.append((loss, right, images, lr))
        if len(self.held) >= self.hold:
            self.look()

    def look(self) -> None:
        """Here the device is waited for, and the other processes are."""
        held, self.held = self.held, []
        rates = [lr for *_, lr in held]
        rows = self._fetched(held)
        for (loss, right, images), lr in zip(self.ranks.sums(rows), rates, strict=True):
            self.steps += 1
            value = loss / self.ranks.world
            if not math.isfinite(value):
                raise Diverged(
                    f"the loss is {value} in epoch {self.epoch}, step {self.steps}, learning rate "
                    f"{lr:.3g} (the last good loss: {self._last()}); try a lower --max_lr"
                )
            self.last_loss = value
            self.loss += value * images
            self.right += right
            self.seen += int(images)

    @staticmethod
    def _fetched(held: list[tuple]) -> list[list[float]]:
        """All at once: each number that is asked for by itself waits for the device."""
        import torch

        if not held:
            return []
        values = torch.stack([torch.stack((loss, right)) for loss, right, *_ in held]).tolist()
        return [[*pair, images] for pair, (_, _, images, _) in zip(values, held, strict=True)]

    def _last(self) -> str:
        return "none in this epoch" if self.last_loss is None else f"{self.last_loss:.4f}"

    @property
    def mean_loss(self) -> float:
        return self.loss / self.seen if self.seen else math.nan

    @property
    def acc(self) -> float:
        return self.right / self.seen if self.seen else math.nan


@dataclass
class Evaluation:
    """One pass over all validation images; the arrays are in the order of `data.val`."""

    loss: float
    top5: float
    true: "np.ndarray"
    predicted: "np.ndarray"
    confidence: "np.ndarray"  # float32: probability of the predicted class
    looks: "Looks"

    @property
    def acc(self) -> float:
        return float((self.predicted == self.true).mean())

    def metrics(self) -> dict[str, float]:
        told = {"val/loss": self.loss, "val/acc": self.acc, "val/top5": self.top5}
        return {**told, **self.looks.metrics()}
