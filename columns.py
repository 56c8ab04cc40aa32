"""3x3 convolutions of small maps as products of matrices, for training on a CPU.

What each output sees is written into a row of its own; the kernel is a matrix as it lies in memory.
Where a map has few pixels that is a small matrix, and its product with a large kernel is faster
than torch's convolution, most of all for the gradient of the weights. Beyond the map's first and
last row there is nothing to see, so that part of the matrix is left out: two ninths of the products
at 3x3. Each output is one sum, rounded once, as in the direct way.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch.nn.functional import pad


def correlate(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """conv2d(x, weight, stride=stride, padding=1), in channels_last."""
    return _correlate(x, weight.permute(0, 2, 3, 1).flatten(1).T, stride)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """That of conv2d(x, weight, padding=1), where `gradient` is the outputs'."""
    mirrored = weight.permute(2, 3, 0, 1).flip(0, 1)
    return _correlate(gradient, mirrored.reshape(-1, weight.shape[1]), 1)


def _correlate(x: torch.Tensor, kernels: torch.Tensor, stride: int) -> torch.Tensor:
    """`kernels` (9 * channels, outputs): in the order of what an output sees."""
    seen = _seen(x, stride)
    rows, outputs = len(seen), kernels.shape[1]
    out = x.new_empty(*seen.shape[:2], outputs)
    for which, inside in _parts(rows, x.shape[2], stride):
        part = _columns(inside, x.shape[1])
        torch.mm(seen[which, :, part].flatten(0, 1), kernels[part], out=out[which].flatten(0, 1))
    out = out.view(rows, len(x), -1, outputs).permute(1, 3, 0, 2)
    return out.contiguous(memory_format=torch.channels_last)


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """That of conv2d(x, weight, stride=stride, padding=1), where `gradient` is the outputs'."""
    seen, outputs = _seen(x, stride), gradient.shape[1]
    gradient = gradient.permute(2, 0, 3, 1).reshape(*seen.shape[:2], outputs)
    sums = x.new_empty(outputs, 3, 3 * x.shape[1])
    for row in range(3):
        see = [out for out in range(len(seen)) if row in _inside(out, x.shape[2], stride)]
        which = slice(see[0], see[-1] + 1) if see else slice(0)
        part = _columns(range(row, row + 1), x.shape[1])
        seen_by = seen[which, :, part].flatten(0, 1)
        torch.mm(gradient[which].flatten(0, 1).T, seen_by, out=sums[:, row])
    return sums.view(outputs, 3, 3, -1).permute(0, 3, 1, 2)


def _seen(x: torch.Tensor, stride: int) -> torch.Tensor:
    """(rows, images * columns, 9 * channels): what each output sees."""
    padded = pad(x.permute(2, 0, 3, 1), (0, 0, 1, 1, 0, 0, 1, 1))
    seen = padded.unfold(0, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)
    return seen.reshape(len(seen), -1, 9 * x.shape[1])


def _parts(rows: int, height: int, stride: int) -> Iterator[tuple[slice, range]]:
    """Rows of outputs, one after the other, and the rows of the kernel that are inside the map."""
    for inside, which in groupby(range(rows), lambda row: _inside(row, height, stride)):
        first, *_ = which = list(which)
        yield slice(first, which[-1] + 1), inside


def _inside(row: int, height: int, stride: int) -> range:
    """The kernel's rows that lie inside the map, for a row of outputs."""
    above = row * stride - 1
    return range(max(0, -above), min(3, height - above))


def _columns(rows: range, channels: int) -> slice:
    """Those of the matrix in which some rows of the kernel lie."""
    return slice(3 * channels * rows.start, 3 * channels * rows.stop)
