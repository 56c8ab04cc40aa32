"""3x3 convolutions with a quarter of the multiplications, for training on a CPU.

Winograd's minimal filtering F(4x4, 3x3), as Lavin and Gray have it (arXiv 1509.09308), in plain
torch: 4x4 outputs need 36 multiplications for each pair of channels instead of 144. With B of a 6x6
tile of the input and G of the kernel, 36 matrix products over the channels are all that is between
them; A gives the outputs. Each transform is one product with the Kronecker square of its matrix.

It rounds more than the sum as it is written; by the points of interpolation 0, 3/4, -3/4, 3/2, -3/2
and infinity half as much as by 0, 1, -1, 2, -2. Outputs differ by some 1e-6 of their size in
float32, and by 1.3% in bf16, which rounds the sum to 0.2%.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.functional import pad

PART_BYTES = 64 * 2**20  # of transformed tiles at a time: so many images at once


class Transforms(NamedTuple):
    tile: torch.Tensor  # (36, 36)
    kernel: torch.Tensor  # (36, 9)
    output: torch.Tensor  # (16, 36)


@lru_cache
def transforms(dtype: torch.dtype) -> Transforms:
    tile = [
        [81 / 64, 0, -45 / 16, 0, 1, 0],
        [0, -27 / 16, -9 / 4, 3 / 4, 1, 0],
        [0, 27 / 16, -9 / 4, -3 / 4, 1, 0],
        [0, -27 / 32, -9 / 16, 3 / 2, 1, 0],
        [0, 27 / 32, -9 / 16, -3 / 2, 1, 0],
        [0, 81 / 64, 0, -45 / 16, 0, 1],
    ]
    kernel = [
        [64 / 81, 0, 0],
        [-128 / 243, -32 / 81, -8 / 27],
        [-128 / 243, 32 / 81, -8 / 27],
        [32 / 243, 16 / 81, 8 / 27],
        [32 / 243, -16 / 81, 8 / 27],
        [0, 0, 1],
    ]
    output = [
        [1, 1, 1, 1, 1, 0],
        [0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0],
        [0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0],
        [0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1],
    ]
    with torch.inference_mode(False):
        matrices = (torch.tensor(rows, dtype=torch.float64) for rows in (tile, kernel, output))
        return Transforms(*(torch.kron(m, m).to(dtype) for m in matrices))


def correlate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """conv2d(x, weight, padding=1), in channels_last."""
    (n, inputs, height, width), outputs = x.shape, len(weight)
    use = transforms(x.dtype)
    kernels = transforms(weight.dtype).kernel @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    kernels = kernels.to(x.dtype).view(36, inputs, outputs)
    rows, columns = tiled(height), tiled(width)
    out = x.new_empty(n, rows, 4, columns, 4, outputs)
    for part in _parts(n, rows * columns * max(inputs, outputs), x.dtype):
        products = torch.bmm(_tiles(x[part]), kernels).view(36, -1)
        blocks = (use.output @ products).view(4, 4, -1, rows, columns, outputs)
        out[part] = blocks.permute(2, 3, 0, 4, 1, 5)
    out = out.view(n, 4 * rows, 4 * columns, outputs)[:, :height, :width]
    return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """That of conv2d(x, weight, padding=1), where `gradient` is the outputs'."""
    return correlate(gradient, weight.flip(2, 3).transpose(0, 1))


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """That of conv2d(x, weight, padding=1), where `gradient` is the outputs'."""
    (n, inputs, height, width), outputs = x.shape, gradient.shape[1]
    use = transforms(x.dtype)
    sums = x.new_zeros(36, inputs, outputs, dtype=dtype)
    count = tiled(height) * tiled(width)
    for part in _parts(n, count * max(inputs, outputs), x.dtype):
        blocks = (use.output.T @ _blocks(gradient[part])).view(36, -1, outputs)
        tiles = _tiles(x[part]).transpose(1, 2)
        if x.dtype == dtype:
            sums.baddbmm_(tiles, blocks)
        else:
            sums += torch.bmm(tiles, blocks)
    sums = transforms(dtype).kernel.T @ sums.view(36, -1)
    sums = sums.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
    return sums.contiguous(memory_format=torch.channels_last)


def tiled(pixels: int) -> int:
    """The tiles that cover so many."""
    return -(-pixels // 4)


def _parts(images: int, values: int, dtype: torch.dtype) -> Iterator[slice]:
    """Slices of so many images that their tiles, of `values` each, fit into PART_BYTES."""
    step = max(1, PART_BYTES // (36 * values * dtype.itemsize))
    return (slice(start, start + step) for start in range(0, images, step))


def _tiles(x: torch.Tensor) -> torch.Tensor:
    """(36, tiles, channels): of the 6x6 tiles, four pixels apart, the transforms."""
    height, width = x.shape[2:]
    margins = (0, 0, 1, 4 * tiled(width) + 1 - width, 1, 4 * tiled(height) + 1 - height)
    padded = pad(x.permute(0, 2, 3, 1), margins)
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
    return (transforms(x.dtype).tile @ tiles).view(36, -1, x.shape[1])


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """(16, blocks * channels): the 4x4 blocks."""
    height, width = x.shape[2:]
    margins = (0, 0, 0, 4 * tiled(width) - width, 0, 4 * tiled(height) - height)
    padded = pad(x.permute(0, 2, 3, 1), margins)
    return padded.unfold(1, 4, 4).unfold(2, 4, 4).permute(4, 5, 0, 1, 2, 3).reshape(16, -1)
