"""Weights averaged over the steps, and with them the statistics of norms."""

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """torch's, by its names in a checkpoint. Its own update copies a number to a GPU in each step,
    which waits for it, and takes whole numbers (how many batches a norm has seen) one by one.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        ours, theirs = (list(chain(m.parameters(), m.buffers())) for m in (self.module, model))
        pairs = list(zip(ours, theirs, strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        share = 1 - self.decay if self.n_averaged else 1.0  # the count is never on a GPU
        torch._foreach_lerp_(*map(list, zip(*floating, strict=True)), share)
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)
        self.n_averaged += 1
