"""Batch norm over the parts of several processes: what one process has of the whole batch."""

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import norms
from cli import Mistake

CHANNELS = 5
BN = nn.BatchNorm2d


class Case(NamedTuple):
    kind: type[nn.Module] = BN
    arguments: Mapping = MappingProxyType({})
    places: tuple[int, ...] = (4, 3)
    layout: torch.memory_format = torch.channels_last
    dtype: torch.dtype = torch.float64
    error: float = 1e-12
    images: int = 7


ROWS = torch.contiguous_format
CASES = {
    "doubles": Case(),
    "floats": Case(dtype=torch.float32, error=1e-4),
    "bf16": Case(dtype=torch.bfloat16, error=1e-2, images=64),
    "rows": Case(layout=ROWS),
    "no places": Case(nn.BatchNorm1d, places=(), layout=ROWS),
    "a line": Case(nn.BatchNorm1d, places=(6,), layout=ROWS),
    "timm's": Case(BatchNormAct2d, {"act_layer": nn.PReLU}),
    "no weight": Case(arguments={"affine": False}),
    "nothing kept": Case(arguments={"track_running_stats": False}),
    "average": Case(arguments={"momentum": None}),
}


def norm_of(case: Case) -> nn.Module:
    wide = torch.promote_types(case.dtype, torch.float32)
    norm = case.kind(CHANNELS, **case.arguments).to(wide)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(norm)


def batch_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Values far from zero, where sums of squares alone would lose digits; a gradient."""
    x, gradient = torch.randn(2, case.images, CHANNELS, *case.places, dtype=torch.float64)
    return tuple(
        one.to(case.dtype).contiguous(memory_format=case.layout) for one in (2 * x + 100, gradient)
    )


def passed(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both ways through it, twice; what it keeps and what it gives."""
    norm(x + 1)
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    assert x.grad.stride() == x.stride()
    told = {"y": y.detach(), "dx": x.grad, **norm.state_dict()}
    return told | {f"d{name}": p.grad for name, p in norm.named_parameters()}


def parts(count: int, world: int) -> list[slice]:
    """Uneven ones, the last of a single image."""
    cuts = [0, *range(2, world), count - 1, count]
    return [slice(*cut) for cut in itertools.pairwise(cuts)]


def join(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)


def one_of_several(rank: int, world: int, folder: Path) -> None:
    join(rank, world, folder)
    told = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        norm, (x, gradient) = norm_of(case), batch_of(case)
        several = copy.deepcopy(norm)
        norms.synchronise(several)
        own = parts(len(x), world)[rank]
        told[name] = passed(several, x[own], gradient[own])
        if rank == 0:
            told[f"{name}, whole"] = passed(norm, x, gradient)
            norm.load_state_dict(several.state_dict())
            several.eval(), norm.eval()
            assert torch.equal(several(x), norm(x))  # measuring needs no other process
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_parts_are_normalised_as_the_whole(world, tmp_path):
    torch.multiprocessing.spawn(one_of_several, (world, tmp_path), world)
    each = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, case in CASES.items():
        for key, expected in each[0][f"{name}, whole"].items():
            told = [one[name][key] for one in each]
            if key in ("y", "dx"):
                assert {one.dtype for one in told} == {case.dtype}
                close(torch.cat(told), expected, case.error, f"{name}: {key}")
            elif key.startswith("d"):  # DDP adds them up
                close(sum(told), expected, case.error, f"{name}: {key}")
            else:  # parameters and statistics, the same everywhere
                for one in told:
                    close(one, expected, case.error, f"{name}: {key}")


def close(one: torch.Tensor, other: torch.Tensor, error: float, what: str) -> None:
    worst = (one.double() - other.double()).abs().max()
    assert worst <= error * other.double().abs().max(), (what, worst)


def one_of_two_compiled(rank: int, world: int, folder: Path) -> None:
    """In the learner's order: DDP, and of that what is compiled; parts of 4 and of 3."""
    join(rank, world, folder)
    torch.manual_seed(0)
    wide = 192  # 1.3 MB a layer: the compiler cuts the model in pieces, for DDP to begin early
    model = nn.Sequential(nn.Conv2d(3, wide, 3, bias=False), BN(wide), nn.ReLU())
    for _ in range(2):
        model.extend([nn.Conv2d(wide, wide, 3, bias=False), BN(wide), nn.ReLU()])
    norms.synchronise(model)
    trained = DistributedDataParallel(model, bucket_cap_mb=1)
    x = torch.randn(7, 3, 8, 8)[[slice(0, 4), slice(4, 7)][rank]]
    gradients = []
    for forward in (trained, torch.compile(trained, backend="aot_eager", dynamic=False)):
        trained.zero_grad()
        forward(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * other.abs().max())
    torch.compile(model, backend="aot_eager", fullgraph=True)(x)  # nothing in it breaks the graph
    dist.destroy_process_group()


@pytest.mark.slow
def test_compiled_the_gradients_are_the_same(tmp_path):
    torch.multiprocessing.spawn(one_of_two_compiled, (2, tmp_path), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and TINYSWEEP_TEST_GPU=1")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name, tmp_path):
    case = CASES[name]
    dist.init_process_group("nccl", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        norm = norm_of(case).cuda()
        x, gradient = (one.cuda() for one in batch_of(case))
        several = copy.deepcopy(norm)
        norms.synchronise(several)
        told, expected = passed(several, x, gradient), passed(norm, x, gradient)
    finally:
        dist.destroy_process_group()
    for key in expected:
        close(told[key], expected[key], max(case.error, 1e-10), key)


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
    assert isinstance(model[2][0].act, nn.ReLU)
    assert type(model.last) is nn.LayerNorm
    norms.freeze(model)
    assert model.training and not model[1].training and not model[2][0].training
    x = torch.randn(2, 3, 6, 6)
    assert (model[:3](x) >= 0).all()  # frozen it needs no other process


def test_a_norm_that_is_not_known_is_refused():
    with pytest.raises(Mistake, match="SplitBatchNorm2d"):
        norms.synchronise(nn.Sequential(SplitBatchNorm2d(4)))
