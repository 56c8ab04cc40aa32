"""Muon against its definition: singular values, sizes, and SGD for the rest."""

import copy

import pytest
import torch
from torch import nn

import data
import model as models
from augment import Augmentation
from cli import Mistake
from config import OPTIMIZERS, Config
from learner import Learner
from loader import epoch_of, train_loader
from muon import STEP, Muon, kernels_of, orthogonal


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return models.create_model("resnet18", 10, 32)


def step_of(net, gradients, steps=1, kind=Muon, **numbers):
    """The parameters after so many steps along the same gradients."""
    trained = copy.deepcopy(net)
    groups = models.parameter_groups(trained, 5e-4)
    if kind is Muon:
        optimizer = Muon(trained, groups, dtype=torch.float32, **numbers)
    else:
        optimizer = kind(groups, **numbers)
    for _ in range(steps):
        for p, gradient in zip(trained.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
    return [p.detach() for p in trained.parameters()]


@pytest.fixture(scope="module")
def gradients(net):
    torch.manual_seed(1)
    return [torch.randn_like(p) for p in net.parameters()]


NUMBERS = {"lr": 0.4, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize("shape", [(64, 576), (128, 64), (40, 40)])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_all_singular_values_become_alike(shape, dtype, off):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -1.5, min(shape))  # the largest is 32 times the least
    found = orthogonal((left * values) @ right, dtype).float()
    expected = values / values.norm()
    for _ in range(3):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert expected.max() < 3 * expected.min()
    torch.testing.assert_close(left.T @ found @ right.T, expected.diag(), rtol=0, atol=off)


def test_a_kernel_turns_by_its_share_whatever_the_gradients_size(net, gradients):
    small = [1e-3 * gradient for gradient in gradients]
    after, alike = (step_of(net, given, **NUMBERS) for given in (gradients, small))
    kernels = set(kernels_of(net))
    assert len(kernels) == 19
    for before, p, other in zip(net.parameters(), after, alike, strict=True):
        if before in kernels:
            assert p.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
            share = ((p - before).norm() / before.norm()).item()
            assert share == pytest.approx(STEP * NUMBERS["lr"], rel=0.25)
            torch.testing.assert_close(p, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_comes_before_the_turn(net, nesterov):
    """Of two gradients with nothing in common the second turns the kernel by its part only."""
    name = "layer1.0.conv1.weight"
    trained = copy.deepcopy(net)
    kernel = trained.get_parameter(name)
    first, second = torch.zeros_like(kernel), torch.zeros_like(kernel)
    first[:32], second[32:] = torch.randn(2, 32, *kernel.shape[1:])
    optimizer = Muon(
        trained, models.parameter_groups(trained, 0.0), 0.1, 0.5, torch.float32, nesterov=nesterov
    )
    expected = (
        (1.5 * first, second * 1.5 + first * 0.25) if nesterov else (first, second + first / 2)
    )
    for gradient, towards in zip((first, second), expected, strict=True):
        size, before = kernel.norm(), kernel.detach().clone()
        kernel.grad = gradient.clone()
        optimizer.step()
        turn = orthogonal(towards.flatten(1), torch.float32).view_as(kernel)
        wanted = before - STEP * 0.1 * size / 8 * turn
        torch.testing.assert_close(kernel.detach(), wanted * (size / wanted.norm()))


def test_the_rest_is_sgds_to_the_last_bit(net, gradients):
    ours = step_of(net, gradients, steps=3, **NUMBERS)
    theirs = step_of(net, gradients, steps=3, kind=torch.optim.SGD, **NUMBERS)
    same = [torch.equal(*pair) for pair in zip(ours, theirs, strict=True)]
    kernels = set(kernels_of(net))
    assert same == [p not in kernels for p in net.parameters()]
    assert not {net.get_classifier().weight, net.conv1.weight} & kernels


@pytest.mark.parametrize("name", ["small", "resnext26ts"])
def test_grouped_convolutions_are_the_rests(name):
    net = models.create_model(name, 10, 32)
    kernels = set(kernels_of(net))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3]
    assert {m.groups == 1 for m in convolutions} == {True, False}
    assert all((m.weight in kernels) == (m.groups == 1) for m in convolutions)


def test_a_kernel_that_starts_at_zero_is_the_rests(net):
    trained = copy.deepcopy(net)
    zero = trained.layer1[0].conv1.weight
    nn.init.zeros_(zero)
    assert zero not in set(kernels_of(trained))


def test_no_gradient_at_all_is_no_step(net):
    nothing = [torch.zeros_like(p) for p in net.parameters()]
    kernels = set(kernels_of(net))
    for before, p in zip(net.parameters(), step_of(net, nothing, **NUMBERS), strict=True):
        assert p.isfinite().all()
        if before in kernels:
            torch.testing.assert_close(p, before)


def test_a_model_without_convolutions_has_no_use_for_it():
    net = models.create_model("vit_tiny_patch16_224", 10, 32)
    with pytest.raises(Mistake, match="has none"):
        Muon(net, models.parameter_groups(net, 0.0), 0.1, 0.9, torch.float32)


def test_l1_is_of_all_weights_whatever_trains_them(shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    batch = next(epoch_of(train_loader(loaded, Augmentation(), 16, seed=0), 1))
    losses = set()
    for optimizer in OPTIMIZERS:
        config = Config(
            dataset="shapes", model="small", image_size=16, l1=1e-3, optimizer=optimizer
        )
        learner = Learner(config, loaded, 3)
        losses.add(learner._loss(torch.zeros(16, len(loaded.cache.classes)), batch).item())
    assert len(losses) == 1
    assert losses.pop() > 2
