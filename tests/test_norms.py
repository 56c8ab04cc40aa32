"""Batch norm over the parts of several processes: what one process has of the whole batch."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.layers import BatchNormAct2d
from torch import nn

import norms

CHANNELS = 5
CASES = {
    "doubles": (nn.BatchNorm2d, (7, CHANNELS, 4, 3), torch.float64, 1e-12),
    "floats": (nn.BatchNorm2d, (7, CHANNELS, 4, 3), torch.float32, 1e-5),
    "bf16": (nn.BatchNorm2d, (64, CHANNELS, 4, 3), torch.bfloat16, 1e-2),
    "no places": (nn.BatchNorm1d, (7, CHANNELS), torch.float64, 1e-12),
    "timm's": (BatchNormAct2d, (7, CHANNELS, 4, 3), torch.float64, 1e-12),
}


def passed(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both ways through it; what it keeps and what it gives."""
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    told = {"y": y.detach(), "dx": x.grad, **norm.state_dict()}
    return told | {f"d{name}": p.grad for name, p in norm.named_parameters()}


def batch_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Values far from zero, where sums of squares alone would lose digits."""
    x, gradient = torch.randn(2, *shape)
    x = (2 * x + 100).to(dtype)
    return (x.to(memory_format=torch.channels_last) if x.ndim == 4 else x), gradient.to(dtype)


def parts(count: int, world: int) -> list[slice]:
    """Uneven ones, the last of a single image."""
    cuts = [0, *range(2, world), count - 1, count] if world > 2 else [0, count - 1, count]
    return [slice(*cut) for cut in zip(cuts, cuts[1:], strict=False)]


def one_of_several(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    told = {}
    for name, (kind, shape, dtype, _) in CASES.items():
        torch.manual_seed(0)
        norm = kind(CHANNELS, dtype=torch.promote_types(dtype, torch.float32))
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x, gradient = batch_of(shape, dtype)
        holder = nn.Sequential(copy.deepcopy(norm))
        norms.synchronise(holder)
        own = parts(len(x), world)[rank]
        told[name] = passed(holder, x[own], gradient[own])
        if rank == 0:
            told[f"{name} whole"] = passed(nn.Sequential(norm), x, gradient)
            holder.eval(), norm.eval()
            norm.load_state_dict(holder[0].state_dict())
            assert torch.equal(holder(x), norm(x))  # measuring needs no other process
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_parts_are_normalised_as_the_whole(world, tmp_path):
    torch.multiprocessing.spawn(one_of_several, (world, tmp_path), world)
    each = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, (_, shape, dtype, error) in CASES.items():
        whole = each[0][f"{name} whole"]
        cuts = parts(shape[0], world)
        for key, expected in whole.items():
            for own, told in zip(cuts, each, strict=True):
                if key in ("y", "dx"):
                    assert told[name][key].dtype == dtype
                    close(told[name][key], expected[own], error, expected, f"{name}: {key}")
                elif not key.startswith("d"):  # parameters and statistics, the same everywhere
                    close(told[name][key], expected, error, expected, f"{name}: {key}")
            if key in ("d0.weight", "d0.bias"):  # what DDP adds up
                added = sum(told[name][key] for told in each)
                close(added, expected, error, expected, f"{name}: {key}")


def close(one, other, error: float, scale, what: str) -> None:
    worst = (one.double() - other.double()).abs().max()
    assert worst <= error * scale.double().abs().max(), (what, worst)


def test_what_becomes_of_a_model():
    """All norms, with their parameters, names and what follows them; nothing else."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    model.add_module("last", nn.LayerNorm(4))
    weight, names = model[1].weight, list(model.state_dict())
    norms.synchronise(model)
    assert model[1].weight is weight
    assert list(model.state_dict()) == names
    assert isinstance(model[1], norms.Synchronised)
    assert isinstance(model[2][0], norms.Synchronised)
    assert isinstance(model[2][0].then[-1], nn.ReLU)
    assert type(model.last) is nn.LayerNorm
    norms.freeze(model)
    assert model.training and not model[1].training and not model[2][0].training
    x = torch.randn(2, 3, 6, 6)
    assert (model[:3](x) >= 0).all()  # frozen it needs no other process


def test_the_batches_are_counted_where_no_momentum_is_given(tmp_path):
    """torch's average over all batches, not a running one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        norm = nn.BatchNorm2d(3, momentum=None)
        holder = nn.Sequential(copy.deepcopy(norm))
        norms.synchronise(holder)
        for seed in range(3):
            x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
            norm(x), holder(x)
    finally:
        dist.destroy_process_group()
    for one, other in zip(norm.buffers(), holder.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5), (one, other)
