"""Batch norm where a batch is spread over several processes, or too small for statistics.

torch's own SyncBatchNorm is for GPUs alone, and each of its forward passes waits for the GPU (it
looks which processes have images at all). Here every process gives the statistics of its part, one
all-reduce forward and one backward, and nobody waits but for that: on GPUs and on CPUs, where it
can be tested. So the history of several processes is that of one, up to rounding.
"""

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(model: nn.Module) -> None:
    """Let batch norms be a `Synchronised`, with the same parameters, statistics and names."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm):
                setattr(parent, name, Synchronised(norm))


def freeze(model: nn.Module) -> None:
    """Let batch norms use the statistics that they have, until the next `model.train()`."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class Synchronised(_BatchNorm):
    """Batch norm over the parts of all processes; none of them may be empty."""

    def __init__(self, norm: _BatchNorm):
        kept = norm.affine, norm.track_running_stats
        super().__init__(norm.num_features, norm.eps, norm.momentum, *kept, device="meta")
        self._parameters, self._buffers = norm._parameters, norm._buffers
        timms = isinstance(norm, BatchNormAct2d)  # which goes on with an activation
        self.then = nn.Sequential(norm.drop, norm.act) if timms else nn.Identity()
        self.train(norm.training)

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass  # any that the norm took that this one stands for

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.then(super().forward(x))
        normalised, mean, var, count = _OverAll.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var * (count / (count - 1)))
        return self.then(normalised)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        # torch's for no momentum: the average of all batches
        part = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(var, part)


class _OverAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        """The normalised part; mean, variance and number of values a channel, over all parts."""
        mean, var, count = _statistics(x)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor, *_) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # As if mean and variance were constants; the sums that it needs for that are what the
        # rest needs of each part: of the gradient, and of gradient times normalised value.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias]).to(mean.dtype)
        dist.all_reduce(sums)
        by_value, by_mean = sums / count
        scale = (var + ctx.eps).rsqrt()
        by_value = by_value * scale * scale
        by_mean = by_mean * scale - by_value * mean
        if weight is not None:
            by_value, by_mean = by_value * weight, by_mean * weight
        of_x = of_x - _a_channel(by_mean, x) - _a_channel(by_value, x) * x
        own = (None, None) if weight is None else (of_weight, of_bias)
        return of_x.to(x.dtype), *own, None


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, variance and number of values a channel, of all processes' parts together."""
    channels, count = x.shape[1], x.numel() // x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    unused = x.new_zeros(2, channels, dtype=wide)
    mean, var = torch.batch_norm_update_stats(x, *unused, 0.0)
    parts = unused.new_zeros(dist.get_world_size(), 2 * channels + 1)  # a row each
    parts[dist.get_rank()] = torch.cat([mean, var, mean.new_full((1,), count)])
    dist.all_reduce(parts)
    means, variances, counts = parts.split([channels, channels, 1], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    var = (share * (variances + (means - mean) ** 2)).sum(0)
    return mean, var, counts.sum()


def _a_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))
