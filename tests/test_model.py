"""The networks: published sizes and shapes, the stem, initialisation, head, names, the table."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import cli
import model as models

ROOT = Path(__file__).parent.parent


def size(net):
    return sum(p.numel() for p in net.parameters())


def output(net, pixels, layer):
    """The output shape of one layer, as in the table."""
    return {name.split()[0]: shape for name, shape, _ in models.layers(net, pixels)}[layer]


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return models.create_model("resnet18", 200)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return models.create_model("small", 10, 32)


def test_resnet18_has_the_published_size_and_shapes(resnet18):
    assert size(resnet18) == 11_271_432
    assert size(models.create_model("resnet18", 10, 32)) == 11_173_962
    assert output(resnet18, 64, "act1") == "64x64x64"
    assert output(resnet18, 64, "layer4.1.act2") == "512x8x8"
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        assert resnet18.forward_features(images).shape == (2, 512, 8, 8)
        assert resnet18(images).shape == (2, 200)


STEMS = [  # name, pixels, map after the stem: small below 128 pixels, stock from there on
    ("resnet18", 32, (64, 32, 32)),
    ("resnet18", 127, (64, 127, 127)),
    ("resnet18", 128, (64, 32, 32)),
    ("resnet18", 224, (64, 56, 56)),
    ("resnet14t", 64, (64, 64, 64)),  # bottlenecks, and a stem of three convolutions
]


@pytest.mark.parametrize("name, pixels, shape", STEMS)
def test_stem(name, pixels, shape):
    net = models.create_model(name, 10, pixels)
    with torch.no_grad():
        maps = net.maxpool(net.act1(net.bn1(net.conv1(torch.zeros(2, 3, pixels, pixels)))))
    assert maps.shape == (2, *shape)


def test_stock_stem_has_timms_own_size():
    assert size(models.create_model("resnet18", 200, 224)) == 11_279_112


@pytest.mark.parametrize("name", ["conv1", "layer4.1.conv2"])
def test_convolutions_are_kaiming_fan_out(resnet18, name):
    conv = resnet18.get_submodule(name)
    expected = (2 / (9 * conv.out_channels)) ** 0.5
    # torch's default for the stem is 0.111, not 0.059, and uniform: nothing beyond sqrt(3) std
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert conv.weight.abs().max() > 2.5 * expected


def test_depthwise_convolutions_count_their_groups(small):
    depthwise = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    weights = torch.cat([conv.weight.flatten() for conv in depthwise])
    assert weights.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_residual_branches_begin_at_zero(resnet18):
    norms = {n: m for n, m in resnet18.named_modules() if isinstance(m, nn.BatchNorm2d)}
    last = {n for n, norm in norms.items() if not norm.weight.any()}
    assert last == {f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)}


def test_the_same_convolutions_with_norms_at_one(resnet18):
    torch.manual_seed(0)
    ones = models.create_model("resnet18", 200, init="ones")
    for (name, a), b in zip(resnet18.named_parameters(), ones.parameters(), strict=True):
        assert torch.equal(a, b) != name.endswith("bn2.weight"), name
    assert all((m.weight == 1).all() for m in ones.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name, layer", [("resnet18", "layer4.1.conv2"), ("small", "features.0.0")])
def test_torchs_own_draws(name, layer):
    net = models.create_model(name, 10, 32, init="torch")
    weight = net.get_submodule(layer).weight
    bound = weight[0].numel() ** -0.5  # uniform in plus or minus 1 / sqrt(fan in)
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all((m.weight == 1).all() for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_small_is_what_it_says(small):
    assert size(small) == 99_530
    convs = [m for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convs if m.groups > 1] == [32, 32, 64, 32, 64, 128]
    stages = [m[0] for m in small.features if isinstance(m[0], nn.Conv2d)]  # stem, transitions
    assert [(m.kernel_size[0], m.dilation[0], m.stride[0]) for m in stages] == [
        (3, 1, 1), (1, 1, 1), (3, 2, 1), (3, 1, 2),
    ]  # fmt: skip
    assert sum(m.stride != (1, 1) for m in convs) == 1
    assert not any(isinstance(m, nn.MaxPool2d) for m in small.modules())
    assert small.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 128, 16, 16)
    assert models.create_model("small", 7)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_small_sees_25_pixels(small):
    net = copy.deepcopy(small).eval()  # as an average of the weights copies it, too
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        nn.init.constant_(conv.weight, 0.1)
    images = torch.ones(1, 3, 64, 64, requires_grad=True)
    net.forward_features(images)[0, :, 16, 16].sum().backward()
    rows = images.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert (rows.max() - rows.min() + 1).item() == 25


@pytest.mark.parametrize("which", ["resnet18", "small"])
def test_head_gives_the_logits_from_the_mean_map(which, request):
    net = request.getfixturevalue(which).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = net.forward_features(images)
        linear = models.try_out(net, "it", 64)
        closed = maps.mean(dim=(2, 3)) @ linear.weight.T + linear.bias
        for logits in (net.forward_head(maps), net(images)):
            torch.testing.assert_close(closed, logits, atol=1e-4, rtol=1e-4)


def test_a_model_that_takes_one_size_is_built_for_it_and_has_no_such_head():
    net = models.create_model("vit_tiny_patch16_224", 5, 64)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert models.try_out(net, "it", 64) is None
    rows = models.layers(net, 64)
    assert sum(count for *_, count in rows) == size(net)  # with the class token and the positions


def test_head_is_none_where_a_norm_or_another_pooling_comes_between():
    assert models.try_out(models.create_model("convnext_atto", 5), "it", 64) is None
    net = models.create_model("resnet18", 5)
    net.reset_classifier(5, global_pool="max")
    assert models.try_out(net, "it", 64) is None
    # Its maps are a list.
    assert models.try_out(models.create_model("coat_tiny", 5, 64), "it", 64) is None


def test_other_models_that_pool_and_end_in_a_linear_layer_have_such_a_head_too():
    net = models.create_model("efficientnet_b0", 5)
    assert models.try_out(net, "it", 64) is net.classifier
    assert net.training


@pytest.mark.parametrize("which", ["resnet18", "small"])
def test_weight_decay_spares_norms_and_biases(which, request):
    net = request.getfixturevalue(which)
    groups = models.parameter_groups(net, 0.05)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(decay) == len(list(net.parameters()))
    for name, module in net.named_modules():
        for key, p in module.named_parameters(recurse=False):
            plain = key == "bias" or isinstance(module, nn.BatchNorm2d)
            assert (name, key, decay[id(p)]) == (name, key, 0.0 if plain else 0.05)
    assert torch.optim.SGD(groups, lr=0.1).param_groups[1]["weight_decay"] == 0.0


def test_known_models_are_timms():
    assert models.known_models() == {"small", *timm.list_models()}


UNKNOWN = {
    "resnet19": ["'resnet18'", "'resnet61q'", "'resnet51q'"],
    "smal": ["'small'"],
    "resnet18.a1_in1k": ["'resnet18'"],  # weights that we never load
    "hf-hub:timm/resnet18.a1_in1k": ["unknown model"],  # a name must never reach for the network
    "": ["unknown model ''", "resnet18"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_model_names_the_nearest(name):
    with pytest.raises(cli.Mistake) as mistake:
        models.create_model(name, 10)
    for word in UNKNOWN[name]:
        assert word in str(mistake.value)
    assert "\n" not in str(mistake.value)


# The one cannot be built (8 is no multiple of 16), the other cannot run (a patch is 16 pixels).
@pytest.mark.parametrize("name, pixels", [("xcit_nano_12_p16_224", 8), ("vit_tiny_patch16_224", 8)])
def test_model_that_does_not_fit_the_images_is_a_mistake(name, pixels):
    with pytest.raises(cli.Mistake, match=f"does not fit images of {pixels} px: ."):
        models.summary(models.create_model(name, 10, pixels), pixels)


def test_summary(small):
    small.train()
    lines = models.summary(small, 32).splitlines()
    assert small.training
    assert not any(m._forward_hooks for m in small.modules())
    assert len({len(line) for line in lines}) == 1  # aligned
    assert lines[0].split() == ["layer", "output", "parameters"]
    assert lines[2].split() == ["input", "3x32x32"]
    assert lines[3].split() == ["features.0.0", "(Conv2d)", "32x32x32", "864"]
    assert lines[-1].split() == ["total", "99,530"]
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[3:-2]]
    assert sum(counts) == 99_530


def test_layers_lists_weights_that_are_used_without_a_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = nn.Conv2d(3, 4, 1), nn.Linear(4, 2, bias=False)

        def forward(self, images):
            return self.conv(images).mean((2, 3)) @ self.spare.weight.T

    rows = [("conv (Conv2d)", "4x8x8", 16), ("spare (Linear)", "", 8)]
    assert models.layers(Net(), 8) == rows


def test_command_prints_the_table(capsys):
    models.main(["--model=small", "--classes=10", "--image_size=32"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["total", "99,530"]


WRONG = {
    "--model=resnet19": "unknown model 'resnet19'; did you mean 'resnet18'",
    "--classes=0": "--classes=0 is not within 1 to 100000",
    "--classes=many": "invalid int value: 'many'",
    "--image_size=7": "--image_size=7 is not within 8 to 1024",
    "--image-size=64": "unknown argument --image-size; did you mean '--image_size'?",
}


@pytest.mark.parametrize("flag", WRONG)
def test_mistake_on_the_command_line_is_one_line_and_needs_no_torch(flag):
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it, or timm, raises
        f"import schedules, model, cli; sys.argv = ['model.py', {flag!r}]; cli.run(model.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert WRONG[flag] in done.stderr and len(done.stderr.splitlines()) == 1
