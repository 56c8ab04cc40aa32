"""The way of each 3x3 convolution that trains on a CPU: torch's own, Winograd's (`winograd.py`) or
the product with a matrix (`columns.py`), by what was measured (LOG.md).
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input

import columns
import winograd

# Winograd's transforms cost more than they save with fewer channels.
FROM_CHANNELS = 64  # the gradient of the weights
FROM_CHANNELS_ALL = 128  # outputs, and the gradient of the input
FROM_PIXELS = 4  # on each side of the map, as a tile has
# In bf16, where products are cheap, all three need more channels, tiles for the kernels to pay, and
# tiles that cover no more pixels than this for each of the map.
FROM_CHANNELS_BF16 = 256
FROM_TILES_BF16 = 256
MOST_COVERED_BF16 = 1.25
# In bf16 columns gain with large kernels and small maps of outputs (of 32 to 256 images; in float32
# they were not tried).
COLUMNS_FROM_CHANNELS = 256, 512  # inputs, outputs
COLUMNS_UP_TO_PIXELS = 4  # on each side; outputs, and the gradient of the input
COLUMNS_UP_TO_PIXELS_WEIGHT = 8  # the gradient of the weights

DIRECT, WINOGRAD, COLUMNS = "direct", "winograd", "columns"


class Ways(NamedTuple):
    output: str
    of_input: str  # its gradient
    of_weight: str  # never DIRECT where another is ours


class Convolution(nn.Conv2d):
    """3x3, stride 1 or 2, padded by 1, no bias: `suits` says which ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bf16 = torch.is_autocast_enabled("cpu")
        # In bf16, where Winograd's rounds six times as much, what is measured goes the direct way.
        # (Columns round as it does; there they were not tried.)
        if not x.is_cpu or torch.compiler.is_compiling() or (bf16 and not self.training):
            return super().forward(x)
        ways = ways_of(x.shape, self.weight.shape, self.stride[0], bf16)
        if set(ways) == {DIRECT}:
            return super().forward(x)
        if not bf16:
            return _Products.apply(x, self.weight, self.stride[0], ways)
        # Winograd's kernels are transformed before they are rounded.
        weight = self.weight if WINOGRAD in ways else self.weight.to(torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            return _Products.apply(x.to(torch.bfloat16), weight, self.stride[0], ways)


def replace(model: nn.Module) -> None:
    """Let the layers that it suits be a `Convolution`, with the same parameters and names."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if suits(layer):
                wide = layer.in_channels, layer.out_channels
                fast = Convolution(*wide, 3, layer.stride, padding=1, bias=False, device="meta")
                fast.weight = layer.weight
                setattr(parent, name, fast.train(layer.training))


def suits(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride in ((1, 1), (2, 2))
        and layer.dilation == (1, 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.bias is None
        and min(layer.in_channels, layer.out_channels) >= FROM_CHANNELS
    )


def ways_of(x: torch.Size, weight: torch.Size, stride: int, bf16: bool) -> Ways:
    """For inputs (images, channels, height, width) and weights (outputs, channels, 3, 3)."""
    if bf16:
        return _winograd_in_bf16(x, weight, stride) or _columns_in_bf16(x, weight, stride)
    if stride > 1 or min(x[2:]) < FROM_PIXELS:
        return Ways(DIRECT, DIRECT, DIRECT)
    others = WINOGRAD if min(weight[:2]) >= FROM_CHANNELS_ALL else DIRECT
    return Ways(others, others, WINOGRAD)


def _winograd_in_bf16(x: torch.Size, weight: torch.Size, stride: int) -> Ways | None:
    count, height, width = x[0], *x[2:]
    tiles = winograd.tiled(height) * winograd.tiled(width)
    gains = (
        stride == 1
        and 16 * tiles <= MOST_COVERED_BF16 * height * width
        and count * tiles >= FROM_TILES_BF16
        and min(weight[:2]) >= FROM_CHANNELS_BF16
    )
    return Ways(WINOGRAD, WINOGRAD, WINOGRAD) if gains else None


def _columns_in_bf16(x: torch.Size, weight: torch.Size, stride: int) -> Ways:
    pixels = -(-max(x[2:]) // stride)
    inputs, outputs = COLUMNS_FROM_CHANNELS
    large = weight[1] >= inputs and weight[0] >= outputs
    output = COLUMNS if large and pixels <= COLUMNS_UP_TO_PIXELS else DIRECT
    of_weight = COLUMNS if large and pixels <= COLUMNS_UP_TO_PIXELS_WEIGHT else DIRECT
    return Ways(output, output if stride == 1 else DIRECT, of_weight)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, stride: int, ways: Ways
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.ways = stride, ways
        if ways.output == WINOGRAD:
            return winograd.correlate(x, weight)
        if ways.output == COLUMNS:
            return columns.correlate(x, weight, stride)
        return conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _of_input(ctx, gradient)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(ctx, gradient)
        return of_input, of_weight, None, None


def _of_input(ctx, gradient: torch.Tensor) -> torch.Tensor:
    x, weight = ctx.saved_tensors
    if ctx.ways.of_input == WINOGRAD:
        return winograd.input_gradient(gradient, weight)
    if ctx.ways.of_input == COLUMNS:
        return columns.input_gradient(gradient, weight)
    return conv2d_input(x.shape, weight, gradient, ctx.stride, padding=1)


def _of_weight(ctx, gradient: torch.Tensor) -> torch.Tensor:
    x, weight = ctx.saved_tensors
    if ctx.ways.of_weight == WINOGRAD:
        return winograd.weight_gradient(x, gradient, weight.dtype)
    return columns.weight_gradient(x, gradient, ctx.stride)
