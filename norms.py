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

from cli import Mistake

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def synchronise(model: nn.Module) -> None:
    """Let batch norms be a `Synchronised`, with the same parameters, statistics and names."""
    for parent in list(model.modules()):
        for name, norm in list(parent._modules.items()):
            if type(norm) in KNOWN:
                setattr(parent, name, Synchronised(norm))
            elif isinstance(norm, _BatchNorm) and not isinstance(norm, Synchronised):
                kind = type(norm).__name__
                raise Mistake(f"the model's {kind} layers are for one process, not for several")


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
        for name in ("drop", "act"):  # timm's BatchNormAct2d goes on with these
            setattr(self, name, getattr(norm, name, None) or nn.Identity())
        self.train(norm.training)

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass  # any that the norm took that this one stands for

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x, mean, var, count = _OverAll.apply(x, self.weight, self.bias, self.eps)
            if self.track_running_stats:
                self._follow(mean, var * (count / (count - 1)))
        else:
            x = super().forward(x)
        return self.act(self.drop(x))

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:  # torch's for the average of all batches
            part = (1 / self.num_batches_tracked).to(mean.dtype)
        else:
            part = self.momentum
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
        scale = (var + ctx.eps).rsqrt()
        given = torch.ones_like(mean) if weight is None else weight
        # Of this part the sums of the gradient and of gradient times normalised value. They are the
        # gradients of bias and weight, too, which DDP adds up.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, given, mean, var, mean, scale, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([of_weight, of_bias]).to(mean.dtype)
        dist.all_reduce(sums)
        along_value, along_mean = sums / count
        # scale * weight * (gradient - along_mean - along_value * normalised value)
        by_gradient = scale * given
        by_value = by_gradient * scale * along_value
        rest = by_gradient * along_mean - by_value * mean
        of_x = gradient * _a_channel(by_gradient, x)
        of_x.sub_(_a_channel(rest, x)).addcmul_(x, _a_channel(by_value, x), value=-1)
        own = (of_weight, of_bias)
        needed = (
            one if need else None for one, need in zip(own, ctx.needs_input_grad[1:3], strict=True)
        )
        return of_x.to(x.dtype), *needed, None


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, variance and number of values a channel, of all processes' parts together."""
    channels, count = x.shape[1], x.numel() // x.shape[1]
    # Running statistics, to stay as they are; bf16 images have float32 ones by their type alone.
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
