"""The convolutions with fewer multiplications against torch's own."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

import compiling
import cpu
import data
import learner
import model as models
import winograd
from augment import Augmentation
from config import Config
from gradcam import Explainer
from loader import epoch_of, train_loader

SHAPES = [  # images, inputs, outputs, height, width
    (3, 128, 136, 8, 8),
    (2, 128, 128, 4, 9),
    (2, 130, 128, 7, 5),
    (3, 64, 128, 6, 6),  # the gradient of the weights alone
    (1, 70, 64, 5, 8),
]


def results(convolve, shape: tuple, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs, and the gradients of input and weights, of the same numbers in each dtype."""
    images, inputs, outputs, height, width = shape
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(images, inputs, height, width, generator=stream)
    weight = torch.randn(outputs, inputs, 3, 3, generator=stream) / inputs**0.5
    gradient = torch.randn(images, outputs, height, width, generator=stream).to(dtype)
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight = weight.to(dtype).requires_grad_()
    y = convolve(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), gradient)


def direct(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return conv2d(x, weight, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("part", [1, 10**9])  # an image at a time, all at once
def test_it_is_the_same_convolution(monkeypatch, shape, dtype, error, part):
    monkeypatch.setattr(winograd, "PART_BYTES", part)
    exact = results(direct, shape, torch.float64)
    found = results(winograd._Winograd.apply, shape, dtype)
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < error * other.abs().max()
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_what_is_replaced():
    model = models.create_model("resnet18", 10, 32, init="ones")  # timm's begin at zero there
    names, before = list(model.state_dict()), dict(model.named_parameters())
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    winograd.replace(model)
    fast = {n for n, m in model.named_modules() if isinstance(m, winograd.Convolution)}
    # Not the stem, nor the first convolutions of layers 2 to 4, which have a stride.
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    strided = {f"layer{stage}.0.conv1" for stage in (2, 3, 4)}
    assert fast == {f"{block}.conv{i}" for block in blocks for i in (1, 2)} - strided
    assert list(model.state_dict()) == names
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    found = model(images)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("amp", "errors"),  # of the loss, of the logits, of the maps
    [("false", (1e-4, 1e-2, 3e-2)), ("true", (1e-2, 0.2, 0.3))],
    ids=["float32", "bf16"],
)
def test_a_step_of_a_learner(amp, errors, shapes_dir):
    """Wired in, with averaged weights and the explainer's copy: the same but for rounding."""
    loaded = data.load("shapes", shapes_dir)
    after = {}
    for choice in ("true", "false"):
        config = Config(
            dataset="shapes",
            winograd=choice,
            device="cpu",
            amp=amp,
            init="ones",
            ema=0.5,
            max_lr=0.01,
            schedule="constant",
        )
        made = learner.Learner(config, loaded, 1)
        fast = any(isinstance(one, winograd.Convolution) for one in made.model.modules())
        assert fast == made.winograd == (choice == "true")
        (batch,) = itertools.islice(epoch_of(train_loader(loaded, Augmentation(), 16, 0), 1), 1)
        made.begin_epoch(1)
        loss, _ = made.train_step(batch)
        made.begin_measuring()
        logits, _ = made.measure(batch.images)
        maps = Explainer(made)(batch.images[:2].numpy(), np.array([0, 1]))[1]
        after[choice] = loss, logits, torch.from_numpy(maps)
    for one, other, error in zip(*after.values(), errors, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=error), (one - other).abs().max()
    (_, logits, _), (_, others, _) = after.values()
    assert not torch.equal(logits, others)


@pytest.mark.parametrize(
    ("compile", "wanted", "expected"),
    [("true", "auto", False), ("auto", "true", True), ("auto", "auto", True)],
)
def test_what_is_compiled_has_torchs_own(monkeypatch, shapes_dir, compile, wanted, expected):
    monkeypatch.setattr(cpu, "gains_by_fewer_products", lambda _: True)
    monkeypatch.setattr(compiling, "missing", lambda _: "")
    monkeypatch.setattr(compiling, "FROM_STEPS", {"cpu": 1})
    monkeypatch.setattr(cpu, "has_amx", lambda: True)
    config = Config(dataset="shapes", winograd=wanted, compile=compile, device="cpu", amp="true")
    made = learner.Learner(config, data.load("shapes", shapes_dir), 10)
    assert made.winograd == expected
    assert (made.compiled is made.trained) == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 3, padding=1),  # its bias would be lost
        nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(64, 64, 3, bias=False),
        nn.Conv2d(64, 64, 3, padding=1, bias=False, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False, padding_mode="reflect"),
        nn.Conv2d(64, 64, 1, bias=False),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.ConvTranspose2d(64, 64, 3, padding=1, bias=False),
    ],
)
def test_what_is_left_as_it_is(layer):
    assert not winograd.suits(layer)


def test_small_maps_go_the_direct_way():
    layer = winograd.Convolution(128, 128, 3, padding=1, bias=False)
    x = torch.randn(2, 128, 3, 3)
    assert torch.equal(layer(x), conv2d(x, layer.weight, padding=1))


def in_bf16(layer: nn.Conv2d, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    return [y.detach(), *torch.autograd.grad(y, (x, layer.weight), gradient.to(y.dtype))]


@pytest.mark.parametrize(("images", "pixels"), [(64, 8), (16, 15), (16, 16)])
@pytest.mark.parametrize("part", [1, 10**9])
def test_in_bf16_it_rounds_by_a_hundredth(monkeypatch, images, pixels, part):
    monkeypatch.setattr(winograd, "PART_BYTES", part)
    torch.manual_seed(1)
    layer = winograd.Convolution(256, 264, 3, padding=1, bias=False)
    x, gradient = (torch.randn(images, n, pixels, pixels) for n in (256, 264))
    found = in_bf16(layer, x, gradient)
    wide = x.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    y = conv2d(*wide, padding=1)
    for one, exact in zip(
        found, (y, *torch.autograd.grad(y, wide, gradient.double())), strict=True
    ):
        error = (one - exact).norm() / exact.norm()
        assert 0.005 < error < 0.02  # directly: 0.002
    assert found[2].dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "channels", "pixels", "training"),
    [(16, 256, 16, False), (16, 192, 16, True), (15, 256, 16, True), (64, 256, 7, True)],
    ids=["measured", "few channels", "few tiles", "wide margins"],
)
def test_in_bf16_what_gains_little_goes_the_direct_way(images, channels, pixels, training):
    torch.manual_seed(1)
    layer = winograd.Convolution(channels, 256, 3, padding=1, bias=False).train(training)
    x, gradient = (torch.randn(images, n, pixels, pixels) for n in (channels, 256))
    plain = nn.Conv2d(channels, 256, 3, padding=1, bias=False)
    plain.weight = layer.weight
    for one, other in zip(*(in_bf16(one, x, gradient) for one in (layer, plain)), strict=True):
        assert torch.equal(one, other)


AMX = "avx2 avx512f avx512_bf16 amx_bf16"
WANTED = [  # winograd, device, bf16, flags, threads: whether
    ("auto", "cpu", False, "avx avx2 fma", 2, True),
    ("auto", "cpu", False, "avx avx2 fma", 16, False),
    ("auto", "cpu", False, "avx2 avx512f", 2, False),
    ("auto", "cpu", False, "", 2, False),
    ("auto", "cpu", True, "avx2", 2, False),
    ("auto", "cpu", True, "avx2 avx512f avx512_bf16", 2, True),
    ("auto", "cpu", True, "avx2 avx512f avx512_bf16", 16, False),
    ("auto", "cpu", True, AMX, 2, False),
    ("auto", "cuda", False, "avx2", 2, False),
    ("auto", "cuda", True, "avx2 avx512f avx512_bf16", 2, False),
    ("false", "cpu", False, "avx2", 2, False),
    ("true", "cpu", False, "avx2 avx512f", 16, True),
    ("true", "cpu", True, AMX, 16, True),
    ("true", "cuda", False, "avx2", 2, False),
]


@pytest.mark.parametrize(("wanted", "device", "amp", "flags", "threads", "expected"), WANTED)
def test_where_it_is_used(monkeypatch, wanted, device, amp, flags, threads, expected):
    monkeypatch.setattr(cpu, "_flags", lambda: set(flags.split()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert learner.wants_winograd(wanted, torch.device(device), amp) == expected
