"""Our ways of a 3x3 convolution against torch's own, and where each is taken."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

import compiling
import convolutions
import cpu
import data
import learner
import model as models
import winograd
from augment import Augmentation
from config import Config
from convolutions import COLUMNS, DIRECT, WINOGRAD, Ways
from gradcam import Explainer
from loader import epoch_of, train_loader

WINOGRADS = [  # images, inputs, outputs, height, width
    (3, 128, 136, 8, 8),
    (2, 128, 128, 4, 9),
    (2, 130, 128, 7, 5),
    (1, 70, 64, 5, 8),
]
SMALL = [(3, 5, 7, 3, 3), (2, 6, 4, 1, 1), (1, 4, 4, 2, 5), (4, 3, 8, 4, 2), (2, 4, 3, 7, 6)]
ONE_IMAGE, ALL = 1, 10**9  # at a time
CASES = [
    *((Ways(WINOGRAD, WINOGRAD, WINOGRAD), shape, 1, ALL) for shape in WINOGRADS),
    *((Ways(WINOGRAD, WINOGRAD, WINOGRAD), shape, 1, ONE_IMAGE) for shape in WINOGRADS),
    (Ways(DIRECT, DIRECT, WINOGRAD), (3, 64, 128, 6, 6), 1, ONE_IMAGE),
    *((Ways(COLUMNS, COLUMNS, COLUMNS), shape, 1, ALL) for shape in SMALL),
    *((Ways(COLUMNS, DIRECT, COLUMNS), shape, 2, ALL) for shape in SMALL),
    (Ways(DIRECT, DIRECT, COLUMNS), (3, 5, 7, 6, 6), 1, ALL),
]


def results(convolve, shape: tuple, stride: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Outputs, and the gradients of input and weights, of the same numbers in each dtype."""
    images, inputs, outputs, height, width = shape
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(images, inputs, height, width, generator=stream)
    weight = torch.randn(outputs, inputs, 3, 3, generator=stream) / inputs**0.5
    rows, columns = -(-height // stride), -(-width // stride)
    gradient = torch.randn(images, outputs, rows, columns, generator=stream).to(dtype)
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight = weight.to(dtype).requires_grad_()
    y = convolve(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), gradient)


@pytest.mark.parametrize(("ways", "shape", "stride", "part"), CASES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_it_is_the_same_convolution(monkeypatch, ways, shape, stride, part, dtype, error):
    monkeypatch.setattr(winograd, "PART_BYTES", part)

    def direct(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return conv2d(x, weight, stride=stride, padding=1)

    def ours(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolutions._Products.apply(x, weight, stride, ways)

    exact = results(direct, shape, stride, torch.float64)
    found = results(ours, shape, stride, dtype)
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < error * other.abs().max()
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_what_is_replaced():
    model = models.create_model("resnet18", 10, 32, init="ones")  # timm's begin at zero there
    names, before = list(model.state_dict()), dict(model.named_parameters())
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    convolutions.replace(model)
    fast = {n for n, m in model.named_modules() if isinstance(m, convolutions.Convolution)}
    # Not the stem.
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert fast == {f"{block}.conv{i}" for block in blocks for i in (1, 2)}
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
        fast = any(isinstance(one, convolutions.Convolution) for one in made.model.modules())
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
        nn.Conv2d(64, 64, 3, padding=1, stride=3, bias=False),
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
    assert not convolutions.suits(layer)


def in_bf16(layer: nn.Conv2d, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    return [y.detach(), *torch.autograd.grad(y, (x, layer.weight), gradient.to(y.dtype))]


def exactly(layer: nn.Conv2d, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    wide = x.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    y = conv2d(*wide, stride=layer.stride, padding=1)
    return [y.detach(), *torch.autograd.grad(y, wide, gradient.double())]


@pytest.mark.parametrize(("images", "pixels"), [(64, 8), (16, 15), (16, 16)])
@pytest.mark.parametrize("part", [ONE_IMAGE, ALL])
def test_in_bf16_winograds_rounds_by_a_hundredth(monkeypatch, images, pixels, part):
    monkeypatch.setattr(winograd, "PART_BYTES", part)
    torch.manual_seed(1)
    layer = convolutions.Convolution(256, 264, 3, padding=1, bias=False)
    x, gradient = (torch.randn(images, n, pixels, pixels) for n in (256, 264))
    found = in_bf16(layer, x, gradient)
    for one, exact in zip(found, exactly(layer, x, gradient), strict=True):
        error = (one - exact).norm() / exact.norm()
        assert 0.005 < error < 0.02  # directly: 0.002
    assert found[2].dtype == torch.float32


@pytest.mark.parametrize(("stride", "inputs", "pixels"), [(1, 520, 3), (1, 256, 4), (2, 256, 6)])
def test_in_bf16_columns_round_as_the_direct_way(stride, inputs, pixels):
    torch.manual_seed(1)
    layer = convolutions.Convolution(inputs, 512, 3, stride, padding=1, bias=False)
    x = torch.randn(8, inputs, pixels, pixels)
    gradient = torch.randn(8, 512, pixels // stride, pixels // stride)
    assert COLUMNS in convolutions.ways_of(x.shape, layer.weight.shape, stride, bf16=True)
    found = in_bf16(layer, x, gradient)
    for one, exact in zip(found, exactly(layer, x, gradient), strict=True):
        assert (one - exact).norm() / exact.norm() < 0.004
    assert found[2].dtype == torch.float32


DIRECTLY = Ways(DIRECT, DIRECT, DIRECT)
BY_WINOGRAD = Ways(WINOGRAD, WINOGRAD, WINOGRAD)
WAYS = [  # images, inputs, outputs, pixels, stride, bf16: the ways
    ((16, 128, 128, 4, 1, False), BY_WINOGRAD),
    ((16, 64, 128, 4, 1, False), Ways(DIRECT, DIRECT, WINOGRAD)),
    ((16, 128, 128, 3, 1, False), DIRECTLY),
    ((16, 128, 256, 16, 2, False), DIRECTLY),
    ((16, 256, 256, 16, 1, True), BY_WINOGRAD),
    ((16, 192, 256, 16, 1, True), DIRECTLY),  # few channels
    ((15, 256, 256, 16, 1, True), DIRECTLY),  # few tiles
    ((64, 256, 256, 7, 1, True), DIRECTLY),  # wide margins
    ((256, 512, 512, 4, 1, True), BY_WINOGRAD),
    ((255, 512, 512, 4, 1, True), Ways(COLUMNS, COLUMNS, COLUMNS)),
    ((16, 256, 512, 3, 1, True), Ways(COLUMNS, COLUMNS, COLUMNS)),
    ((16, 512, 511, 3, 1, True), DIRECTLY),
    ((16, 255, 512, 3, 1, True), DIRECTLY),
    ((128, 512, 512, 6, 1, True), Ways(DIRECT, DIRECT, COLUMNS)),
    ((128, 512, 512, 9, 1, True), DIRECTLY),
    ((128, 256, 512, 7, 2, True), Ways(COLUMNS, DIRECT, COLUMNS)),
    ((128, 256, 512, 16, 2, True), Ways(DIRECT, DIRECT, COLUMNS)),
    ((128, 256, 512, 17, 2, True), DIRECTLY),
    ((128, 128, 256, 4, 2, True), DIRECTLY),
]


@pytest.mark.parametrize(("size", "expected"), WAYS)
def test_the_way_of_each_size(size, expected):
    images, inputs, outputs, pixels, stride, bf16 = size
    x, weight = torch.Size([images, inputs, pixels, pixels]), torch.Size([outputs, inputs, 3, 3])
    assert convolutions.ways_of(x, weight, stride, bf16) == expected


@pytest.mark.parametrize(
    ("images", "channels", "pixels", "training"),
    [(64, 256, 8, False), (2, 512, 3, False), (2, 64, 8, True)],
    ids=["measured", "measured, small", "neither gains"],
)
def test_in_bf16_the_direct_way_is_torchs_own(images, channels, pixels, training):
    torch.manual_seed(1)
    layer = convolutions.Convolution(channels, 512, 3, padding=1, bias=False).train(training)
    x, gradient = (torch.randn(images, n, pixels, pixels) for n in (channels, 512))
    plain = nn.Conv2d(channels, 512, 3, padding=1, bias=False)
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
