"""Muon, which turns a convolution's kernels in all directions alike, instead of along the few in
which the gradient is large.

As Keller Jordan has it (https://kellerjordan.github.io/posts/muon/, and for images
https://github.com/KellerJordan/cifar10-airbench): the momentum, a matrix with a row for each
output, is replaced by the orthogonal matrix next to it, which three rounds of his polynomial come
near enough to. The rest is trained by SGD: norms, biases, linear layers, and the kernels of colours
and of grouped convolutions, whose matrices are no maps from all channels to all.

A kernel's step is relative to its size, which stays what it was at the start: before a norm it
means nothing, and as it grew the steps would turn the kernel less. So weight decay is for the rest
alone, and a rate that suits SGD is of the right size for both.
"""

from typing import Any

import torch
from torch import nn

from cli import Mistake

STEP = 0.1  # of a kernel's size, at a learning rate of 1
COLOURS = 3
ROUNDS = 3
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of x, x^3, x^5
LEAST_NORM = 1e-7


class Muon(torch.optim.SGD):
    """`groups` of the model's parameters as SGD takes them: what are kernels moves into one of
    their own. `dtype` is that of the rounds.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict],
        lr: float,
        momentum: float,
        dtype: torch.dtype,
        **kind: Any,
    ):
        kernels = kernels_of(model)
        if not kernels:
            raise Mistake("optimizer=muon trains convolutions, and this model has none for it")
        ours = {id(kernel) for kernel in kernels}
        rest = [
            {**group, "params": [p for p in group["params"] if id(p) not in ours]}
            for group in groups
        ]
        super().__init__([*rest, {"params": kernels, "kernels": True}], lr, momentum, **kind)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if "kernels" in group:
                for kernel in group["params"]:
                    if kernel.grad is not None:
                        self._turn(kernel, group)
                        kernel.grad = None  # SGD leaves it alone
        super().step()

    def _turn(self, kernel: torch.Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[kernel], group["momentum"]
        if not state:
            state["size"] = kernel.norm()
            state["momentum_buffer"] = torch.zeros_like(kernel)
        buffer = state["momentum_buffer"].mul_(momentum).add_(kernel.grad)
        towards = kernel.grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        # Outputs by all else, in the order of the memory (channels_last).
        rows = towards.permute(0, 2, 3, 1)
        turn = orthogonal(rows.flatten(1), self.dtype).view(rows.shape).permute(0, 3, 1, 2)
        # An orthogonal matrix has the size of the square root of its rank.
        relative = STEP * group["lr"] / min(len(kernel), kernel[0].numel()) ** 0.5
        kernel.addcmul_(turn.to(kernel.dtype), state["size"], value=-relative)
        kernel.mul_(state["size"] / kernel.norm())


def kernels_of(model: nn.Module) -> list[nn.Parameter]:
    """Not those that start at zero, which have no size to keep."""
    return [
        layer.weight
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.in_channels > COLOURS
        and layer.weight.requires_grad
        and layer.weight.any()
    ]


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Nearly: with the singular vectors of `matrix`, and values about 1 (but for tiny ones).

    A round is X <- p(S) X with S = X X', which is much smaller than X where that is a kernel's
    matrix. As p(S) and S have the same eigenvectors, the next round's S is p(S) S p(S): X itself is
    needed at the start and at the end alone.
    """
    x = (matrix / (matrix.norm() + LEAST_NORM)).to(dtype)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    first, third, fifth = POLYNOMIAL
    square, turn = wide @ wide.T, None
    for following in reversed(range(ROUNDS)):
        factor = torch.addmm(square, square, square, beta=third, alpha=fifth)
        factor.diagonal().add_(first)
        turn = factor if turn is None else factor @ turn
        if following:
            square = factor @ square @ factor
    wide = turn @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
