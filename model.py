"""The networks, by name, and what the rest of the program needs to know about them.

    python model.py [--model=resnet18] [--classes=200] [--image_size=64]

prints a table of the layers with their output shapes and parameters (4 to 15 s: timm's import).

Every model has timm's two halves: `model.forward_features(images)` is the last feature map before
the pooling, `model.forward_head(maps)` the logits; one after the other they are `model(images)`.
`model.get_classifier()` is the last layer.

Initialisation, `timm` unless asked otherwise: convolutions are Kaiming normal, fan out, as in He et
al. (2015) and in timm, whose ResNets also start the last norm of each residual branch at zero:
every block begins as the identity, and the first steps bear a large learning rate. Linear layers
keep torch's default. `ones` starts all norms at one. `torch` is each layer's own default
(Kaiming uniform with a small gain: outside the stem the weights are 1.7 to 2.4 times smaller, so
under batch norm the same learning rate moves them further); code that sets no initialisation gets
it.
"""

import contextlib
import copy
import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cli
from ending import is_no_memory

if TYPE_CHECKING:  # torch and timm take seconds to import: a mistyped name is answered without them
    import torch
    from torch import nn

# ResNets for fewer pixels get the small stem (3x3, stride 1, no max-pool). At 64 px it leaves a
# map of 8x8 before the pooling; the stock stem (7x7, stride 2, max-pool) would leave 2x2. From
# 128 px on the stock map is 4x4 or more (7x7 at 224) at a sixteenth of the small stem's cost, and
# published recipes of that size were made with it.
STOCK_STEM_FROM = 128  # pixels
INITS = ("timm", "ones", "torch")


@lru_cache
def known_models() -> frozenset[str]:
    """`small` and every model of timm, read from timm's source text: importing it takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        raise cli.Mistake("timm is not installed: `pip install -r requirements.txt`")
    found = {"small"}
    for path in (Path(spec.origin).parent / "models").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        found.update(re.findall(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", source, re.M))
    return frozenset(found)


def check_name(name: str) -> None:
    """Raise Mistake, with the three nearest names, where there is no such model; needs no torch."""
    if name not in known_models():
        hint = cli.did_you_mean(name, sorted(known_models()), 3)
        raise cli.Mistake(f"unknown model '{name}'{hint or ': small, resnet18 or a name of timm'}")


def create_model(
    name: str, num_classes: int, image_size: int = 64, init: str = "timm"
) -> "nn.Module":
    """An untrained model for square RGB images of `image_size` pixels: `small`, or any of timm."""
    assert init in INITS, init
    check_name(name)
    if name == "small":
        model = create_small(num_classes)
    else:
        model = _create_timm(name, num_classes, image_size)
    if init == "ones":
        _start_norms_at_one(model)
    elif init == "torch":
        _draw_as_torch(model)
    return model


def _create_timm(name: str, num_classes: int, image_size: int) -> "nn.Module":
    import timm
    from timm.models.resnet import ResNet

    # ViTs, Swins, mixers: their position embeddings or windows are made for one image size.
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    size = {"img_size": image_size} if fixed else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(name, image_size, error) from error
    if isinstance(model, ResNet) and image_size < STOCK_STEM_FROM:
        _keep_resolution(model)
    return model


def check_fit(model: "nn.Module", name: str, image_size: int) -> None:
    """Raise Mistake where the model cannot take images of this size; one of zeros is tried."""
    with _evaluating(model), _fitting(name, image_size):
        model(_zeros(model, image_size))


def check_alone(model: "nn.Module", name: str, image_size: int) -> None:
    """As `check_fit`, for batches of one image: norms want more than one value of each channel."""
    copied = copy.deepcopy(model).train()
    with _fitting(name, image_size):
        copied(_zeros(copied, image_size))


@contextlib.contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _fitting(name: str, image_size: int) -> Iterator[None]:
    """Mistake for what a model raises of an image's size."""

    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        if is_no_memory(error):
            reason = f"model '{name}' at {image_size} px: out of memory"
            raise cli.Failure(reason) from error
        raise _unfit(name, image_size, error) from error


def _zeros(model: "nn.Module", image_size: int) -> "torch.Tensor":
    import torch

    return torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)


def _unfit(name: str, image_size: int, error: Exception) -> cli.Mistake:
    reason = " ".join(str(error).split()) or type(error).__name__
    return cli.Mistake(f"model '{name}' does not fit images of {image_size} px: {reason}"[:300])


def _start_norms_at_one(model: "nn.Module") -> None:
    """Those that timm starts at zero."""
    from torch import nn

    for module in model.modules():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            nn.init.ones_(scale)


def _draw_as_torch(model: "nn.Module") -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _keep_resolution(model: "nn.Module") -> None:
    """Give a timm ResNet the small stem: [n, 3, s, s] -> [n, 64, s, s]."""
    from torch import nn

    if isinstance(model.conv1, nn.Conv2d):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        # As timm drew the one that it replaces; nn.Conv2d's own default is another distribution.
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    else:
        model.conv1[0].stride = (1, 1)  # a deep stem (resnet18d) consists of 3x3 convolutions
    model.maxpool = nn.Identity()


def create_small(num_classes: int) -> "nn.Module":
    """99,530 parameters at 10 classes, for 32x32 images; six depthwise separable convolutions.

    The transitions between its four stages save channels (1x1), see further (dilated, where a
    stride would lose pixels), and halve the resolution. An output pixel sees 25x25 input pixels.
    """
    from torch import nn

    class Small(nn.Module):  # in here because its base class is torch's
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                _conv(3, 32, 3),
                _separable(32, 64),
                _conv(64, 32, 1),  # first transition
                _separable(32, 64),
                _separable(64, 64),
                _conv(64, 32, 3, dilation=2),  # second
                _separable(32, 64),
                _conv(64, 64, 3, stride=2),  # third
                _separable(64, 128),
                _separable(128, 128),
            )
            self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(128, num_classes)

        def forward_features(self, images: "torch.Tensor") -> "torch.Tensor":
            return self.features(images)

        def forward_head(self, maps: "torch.Tensor") -> "torch.Tensor":
            return self.fc(self.global_pool(maps))

        def get_classifier(self) -> nn.Module:
            return self.fc

        def forward(self, images: "torch.Tensor") -> "torch.Tensor":
            return self.forward_head(self.forward_features(images))

    return Small()


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1, **shape: int) -> "nn.Module":
    """Convolution (`shape`: its stride or dilation), batch norm, ReLU; padded to keep the size."""
    from torch import nn

    padding = shape.get("dilation", 1) * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, bias=False, **shape)
    # torch's fan out forgets the groups; depthwise, one channel to one, the two fans are the same.
    mode = "fan_in" if groups > 1 else "fan_out"
    nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _separable(inputs: int, outputs: int) -> "nn.Module":
    """Depthwise 3x3, then pointwise 1x1."""
    from torch import nn

    return nn.Sequential(_conv(inputs, inputs, 3, groups=inputs), _conv(inputs, outputs, 1))


def weights_of(model: "nn.Module") -> "list[nn.Parameter]":
    """Of convolutions and linear layers, not norms and biases."""
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


def parameter_groups(model: "nn.Module", weight_decay: float) -> list[dict]:
    """For an optimizer: weight decay on weights alone."""
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": weights_of(model), "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def try_out(model: "nn.Module", name: str, image_size: int) -> "nn.Linear | None":
    """As `check_fit`; gives the linear layer where logits = W @ mean(maps) + b with
    maps = forward_features(images).

    There Grad-CAM at the last map has a closed form. None for a model that ends otherwise; tried
    with maps of noise, so that it holds for every model that there is.
    """
    import torch
    from torch import nn

    linear, image = model.get_classifier(), _zeros(model, image_size)
    with _evaluating(model):
        with _fitting(name, image_size):
            maps = model.forward_features(image)
            pooled = (
                isinstance(linear, nn.Linear)
                and isinstance(maps, torch.Tensor)
                and maps.ndim == 4
                and maps.shape[1] == linear.in_features
            )
            if not pooled:
                model(image)
                return None
        noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0)).to(image.device)
        same = torch.allclose(model.forward_head(noise), linear(noise.mean((2, 3))), atol=1e-4)
    return linear if same else None


def layers(model: "nn.Module", image_size: int) -> list[tuple[str, str, int]]:
    """(name and type, output as 64x64x64, own parameters) of each layer, as they run."""
    from torch import nn

    def own(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters(recurse=False))

    # What calls no other module, and what has parameters of its own (a ViT's class token).
    names = {m: f"{name or 'itself'} ({type(m).__name__})" for name, m in model.named_modules()}
    wanted = [m for m in names if own(m) or not any(m.children())]
    wanted = [m for m in wanted if not isinstance(m, nn.Identity)]
    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, _inputs: tuple, output: object) -> None:
        shapes.setdefault(module, "x".join(map(str, getattr(output, "shape", ())[1:])))

    hooks = [module.register_forward_hook(note) for module in wanted]
    try:
        check_fit(model, type(model).__name__, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [m for m in wanted if m not in shapes and own(m)]  # its parent uses its weights
    return [(names[m], shapes.get(m, ""), own(m)) for m in [*shapes, *uncalled]]


def summary(model: "nn.Module", image_size: int) -> str:
    """A table of the layers, their outputs (channels x height x width) and their parameters."""
    total = sum(p.numel() for p in model.parameters())
    table = [("layer", "output", "parameters"), ("input", f"3x{image_size}x{image_size}", "")]
    table += [(name, shape, f"{count:,}") for name, shape, count in layers(model, image_size)]
    table += [("total", "", f"{total:,}")]
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in table]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def main(arguments: list[str]) -> None:
    parser = cli.Parser(prog="python model.py", description=__doc__)
    parser.add_argument("--model", default="resnet18", help="small, or any name of timm")
    parser.add_argument("--classes", type=int, default=200, help="1 to 100000")
    parser.add_argument("--image_size", type=int, default=64, help="pixels, 8 to 1024")
    args = parser.parse_args(arguments)
    for flag, low, high in (("classes", 1, 100_000), ("image_size", 8, 1024)):
        if not low <= getattr(args, flag) <= high:
            raise cli.Mistake(f"--{flag}={getattr(args, flag)} is not within {low} to {high}")
    print(summary(create_model(args.model, args.classes, args.image_size), args.image_size))


if __name__ == "__main__":
    cli.run(main)
