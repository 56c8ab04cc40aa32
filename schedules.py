"""Learning rates: a pure function of the step, times the cuts that a plateau of the loss asked for.

The shapes are torch's OneCycleLR, CyclicLR and ReduceLROnPlateau. They write to a stand-in
optimizer, and their rate is copied to the real one. So the cyclic rate and the plateau's cuts
multiply (on one optimizer CyclicLR would undo each cut at the next step), and a resumed run jumps
straight to its step, whether the optimizer's own state is loaded before or after.

Steps count from 0: the first batch trains with `rate_at(0)`, the last of n with `rate_at(n - 1)`,
and there the rate stays.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line needs KINDS and does not wait for torch
    from torch.optim import Optimizer

    from config import Config

KINDS = ("onecycle", "cyclic", "plateau", "step", "constant")
ANNEALS = {"cosine": "cos", "linear": "linear"}  # our word -> torch's


def create_schedule(
    optimizer: "Optimizer", config: "Config", total_steps: int, steps_per_epoch: int
) -> "Schedule":
    """Set the optimizer to the first step's rate, and return what moves it on.

    onecycle: max_lr / div_factor, up to max_lr in warmup_fraction of the steps, then down to
        max_lr / div_factor / final_div_factor; along a cosine or a line (`anneal`)
    cyclic: triangles of cycle_epochs, up and down, from base_lr to a peak that begins at max_lr
        and comes half way down to base_lr with each cycle (triangular2); times plateau's cuts
    plateau: max_lr, times `factor` when `patience` epochs in a row and one more had no better loss
    step: max_lr, times gamma every step_epochs epochs
    constant: max_lr

    cycle_momentum (onecycle, cyclic): move momentum or Adam's first beta against the rate, between
    torch's numbers (0.85 and 0.95; cyclic 0.8 and 0.9). It is torch's default, not ours: it never
    uses the momentum that the user asked for.
    """
    assert total_steps >= 1 and steps_per_epoch >= 1, (total_steps, steps_per_epoch)
    kind = config.schedule
    if kind == "onecycle":
        numbers = {
            "max_lr": config.max_lr,
            "total_steps": total_steps,
            "pct_start": _warmup(config.warmup_fraction, total_steps),
            "anneal_strategy": ANNEALS[config.anneal],
            "div_factor": config.div_factor,
            "final_div_factor": config.final_div_factor,
            "cycle_momentum": config.cycle_momentum,
        }
    elif kind == "cyclic":
        numbers = {
            "base_lr": config.base_lr,
            "max_lr": config.max_lr,
            "step_size_up": config.cycle_epochs * steps_per_epoch / 2,
            "mode": "triangular2",
            "cycle_momentum": config.cycle_momentum,
        }
    else:  # not torch's StepLR: it multiplies whatever rate it finds, and so depends on history
        every = config.step_epochs * steps_per_epoch if kind == "step" else total_steps
        numbers = {"lr_lambda": lambda step: config.gamma ** (step // every)}
    # torch refuses a factor that cuts nothing
    cuts = kind in ("cyclic", "plateau") and config.factor < 1
    plateau = {"patience": config.patience, "factor": config.factor} if cuts else None
    return Schedule(optimizer, kind, config.max_lr, total_steps, numbers, plateau)


def moves_momentum(config: "Config") -> bool:
    """Then the schedule alone says what it is, from the first step on."""
    return config.cycle_momentum and config.schedule in ("onecycle", "cyclic")


class Schedule:
    """`step_batch()` after each optimizer step, `step_epoch(val_loss, pixels)` after each epoch:
    the loss on images of so many pixels.
    """

    def __init__(
        self,
        optimizer: "Optimizer",
        kind: str,
        max_lr: float,
        total_steps: int,
        numbers: dict,  # torch's names and values for the shape
        plateau: dict | None,
    ):
        from torch.optim import lr_scheduler

        shapes = {"onecycle": lr_scheduler.OneCycleLR, "cyclic": lr_scheduler.CyclicLR}
        self.optimizer = optimizer
        self.step = 0  # of the next batch
        self.last_step = total_steps - 1
        self._momentum = numbers.get("cycle_momentum", False)
        self._at = _stand_in(max_lr)  # where the shape writes rate and momentum
        self._shape = shapes.get(kind, lr_scheduler.LambdaLR)(self._at, **numbers)
        self._at.step()  # once, or the scheduler warns that training does not
        self._cuts = _stand_in(1.0)
        self._plateau = plateau and lr_scheduler.ReduceLROnPlateau(self._cuts, **plateau)
        self._pixels: int | None = None  # of the last loss
        self._apply()

    @property
    def scale(self) -> float:
        """The product of the plateau's cuts so far, 1 before the first."""
        return self._cuts.param_groups[0]["lr"]

    def rate_at(self, step: int) -> float:
        """The learning rate of any step, but for the plateau's cuts."""
        # The three shapes look at `last_epoch` and nothing else, so it may be set to anything.
        # Beyond the last step torch would climb again (cosine), fall below zero (line), or raise.
        self._shape.last_epoch = min(step, self.last_step) - 1
        self._shape.step()
        return self._at.param_groups[0]["lr"]

    def step_batch(self) -> None:
        self.step += 1
        self._apply()

    def step_epoch(self, val_loss: float, pixels: int) -> None:
        """`plateau` and `cyclic` listen, the others do not; a loss of NaN is not a better one.

        Where images have grown, the losses before are forgotten, as they are no measure for it.
        """
        if self._plateau:
            if self._pixels not in (None, pixels):
                self._plateau.best, self._plateau.num_bad_epochs = math.inf, 0
            self._pixels = pixels
            self._plateau.step(val_loss)
            self._apply()

    def state_dict(self) -> dict:
        """Plain numbers and words: torch.load(weights_only=True) reads them."""
        plateau = self._plateau and self._plateau.state_dict()
        return {
            "step": self.step,
            "scale": self.scale,
            "plateau": plateau,
            "pixels": self._pixels,
        }

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        self._cuts.param_groups[0]["lr"] = state["scale"]
        if self._plateau:
            self._plateau.load_state_dict(state["plateau"])
            self._pixels = state.get("pixels")
        self._apply()

    def _apply(self) -> None:
        rate = self.rate_at(self.step) * self.scale
        momentum = self._at.param_groups[0]["momentum"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if self._momentum and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif self._momentum:
                group["momentum"] = momentum


def _stand_in(lr: float) -> "Optimizer":
    """An optimizer of nothing, for a scheduler to write to."""
    import torch

    return torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)


def _warmup(fraction: float, total_steps: int) -> float:
    """torch divides by zero where the warm-up is exactly one step long: let that be the peak."""
    return fraction * (1 - 1e-9) if fraction * total_steps == 1 else float(fraction)
