"""Muon against its definition: singular values, sizes, and SGD for the rest."""

import copy

import pytest
import torch

import model as models
from cli import Mistake
from muon import STEP, Muon, is_kernel, orthogonal


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return models.create_model("resnet18", 10, 32)


def step_of(net, gradients, steps=1, kind=Muon, **numbers):
    """The parameters after so many steps along the same gradients."""
    trained = copy.deepcopy(net)
    extra = {"dtype": torch.float32} if kind is Muon else {}
    optimizer = kind(models.parameter_groups(trained, 5e-4), **{**numbers, **extra})
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
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
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
    kernels = 0
    for before, p, other in zip(net.parameters(), after, alike, strict=True):
        if is_kernel(before):
            kernels += 1
            assert p.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
            share = ((p - before).norm() / before.norm()).item()
            assert share == pytest.approx(STEP * NUMBERS["lr"], rel=0.25)
            torch.testing.assert_close(p, other, rtol=1e-3, atol=1e-5)
    assert kernels == 19


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_comes_before_the_turn(net, nesterov):
    """Of two gradients with nothing in common the second turns the kernel by its part only."""
    name = "layer1.0.conv1.weight"
    trained = copy.deepcopy(net)
    kernel = trained.get_parameter(name)
    first, second = torch.zeros_like(kernel), torch.zeros_like(kernel)
    first[:32], second[32:] = torch.randn(2, 32, *kernel.shape[1:])
    optimizer = Muon([{"params": [kernel]}], 0.1, 0.5, torch.float32, nesterov=nesterov)
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
    assert same == [not is_kernel(p) for p in ours]
    assert net.get_classifier().weight.ndim == 2
    assert not is_kernel(net.conv1.weight)


def test_of_separable_convolutions_those_of_one_channel_are_the_rests():
    convolutions = [p for p in models.create_model("small", 10, 32).parameters() if p.ndim == 4]
    assert {is_kernel(p) for p in convolutions if p.shape[1] == 1} == {False}
    assert {is_kernel(p) for p in convolutions if p.shape[1] > 3} == {True}


def test_no_gradient_at_all_is_no_step(net):
    nothing = [torch.zeros_like(p) for p in net.parameters()]
    for before, p in zip(net.parameters(), step_of(net, nothing, **NUMBERS), strict=True):
        assert p.isfinite().all()
        if is_kernel(p):
            torch.testing.assert_close(p, before)


def test_a_model_without_convolutions_has_no_use_for_it():
    net = models.create_model("vit_tiny_patch16_224", 10, 32)
    with pytest.raises(Mistake, match="has none"):
        Muon(models.parameter_groups(net, 0.0), 0.1, 0.9, torch.float32)
