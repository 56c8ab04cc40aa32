"""The recipes: what each file says of itself, the published rates, and a few steps of each by its
own command.
"""

import json
import math
import re

import pytest
import torch
import yaml
from small_cifar10 import write_cifar10

import resolution
from bench.results import RUNS, recipe_of
from cli import Mistake
from collection import read_history
from config import FIELDS, from_mapping, read_recipe
from conftest import REPO, write_tree
from run_folder import compare_configs, read_json
from runs import Run, history
from schedules import create_schedule

FILES = {path.stem: path for path in sorted((REPO / "recipes").iterdir())}
TINY = 77_000  # training images of the pooled split


def recipe(name, **changed):
    return from_mapping({**read_recipe(FILES[name]), **changed})


def test_all_are_there():
    names = "adam_onecycle_224 best cifar10_resnet18 cifar10_small cpu cpu_long cpu_short"
    others = "cyclic_plateau linear_onecycle onecycle_sgd"
    assert list(FILES) == [*names.split(), *others.split()]
    assert all(path.suffix == ".yaml" for path in FILES.values())


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_opens_with_its_command_and_what_to_expect(name):
    text = FILES[name].read_text()
    opening = re.match(r"(#.*\n)+", text)[0]
    assert f"#     python train.py --config=recipes/{name}.yaml\n" in opening
    assert "\n# Origin: " in opening or "\n# Not run in full yet" in opening
    assert "\n# Expect: " in opening
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", FILES)
def test_the_readme_has_its_row(name):
    lines = (REPO / "README.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{name}` |"))
    assert f"`python train.py --config=recipes/{name}.yaml`" in row


def rates(config, images):
    """(steps an epoch, rate and momentum of each step, those after the last one)."""
    steps = math.ceil(images / config.batch_size)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=config.momentum)
    schedule = create_schedule(optimizer, config, config.epochs * steps, steps)
    (group,) = optimizer.param_groups
    seen = [(group["lr"], group["momentum"])]
    for _ in range(config.epochs * steps):
        schedule.step_batch()
        seen.append((group["lr"], group["momentum"]))
    return steps, seen


def assert_rates(published, found):
    """`1 0.00050, 2 …` against what is found for each epoch, to all printed digits."""
    for epoch, rate in map(str.split, published.split(",")):
        digits = len(rate.partition(".")[2])
        assert (epoch, f"{found(int(epoch)):.{digits}f}") == (epoch, rate)


def test_published_rates_of_onecycle_sgd():
    steps, seen = rates(recipe("onecycle_sgd"), TINY)
    assert steps == 151
    published = """1 0.00050, 2 0.00082, 5 0.00280, 10 0.00760, 15 0.01000, 20 0.00950, 30 0.00611,
                   40 0.00188, 45 0.00049, 50 0.00000"""
    assert_rates(published, lambda epoch: seen[epoch * steps][0])
    assert seen[0][1] == pytest.approx(0.95)
    assert min(momentum for _, momentum in seen) == pytest.approx(0.85, abs=1e-5)


# The file's own third, and the exact one: the printed digits must not depend on its rounding.
@pytest.mark.parametrize("changed", [{}, {"warmup_fraction": 1 / 3}])
def test_published_rates_of_linear_onecycle(changed):
    steps, seen = rates(recipe("linear_onecycle", **changed), TINY)
    assert steps == 301
    published = """1 0.002, 2 0.0038005982, 3 0.0056011964, 11 0.0199967110, 12 0.0190067110,
                   30 0.0011867110"""
    assert_rates(published, lambda epoch: seen[(epoch - 1) * steps][0])
    assert seen[-1][0] == pytest.approx(0.0002, rel=1e-12)


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_what_was_measured_had_the_rates_of_the_recipe_that_is_here(folder):
    images = read_json(folder / "about.json")["training_images"]
    steps, seen = rates(recipe(recipe_of(folder.name)), images)
    for row in read_history(folder):
        assert row["lr"] == pytest.approx(seen[int(row["epoch"]) * steps][0], rel=1e-9)


def test_the_peak_of_adam_onecycle_224_is_after_epoch_4_and_nothing_is_annihilated():
    steps, seen = rates(recipe("adam_onecycle_224"), 100_000)
    highest = max(range(len(seen)), key=lambda step: seen[step][0])
    assert abs(highest - 4 * steps) <= 1
    assert seen[highest][0] == pytest.approx(0.00203, rel=1e-6)
    assert seen[-1][0] == pytest.approx(seen[0][0]) == pytest.approx(0.00203 / 25)


def test_the_triangles_of_cyclic_plateau_come_half_way_down():
    config = recipe("cyclic_plateau")
    steps, seen = rates(config, TINY)
    each = config.cycle_epochs
    places = [round((n + 0.5) * each * steps) for n in range(5)]
    peaks = [seen[place][0] - config.base_lr for place in places]
    first = config.max_lr - config.base_lr
    assert peaks == pytest.approx([first / 2**n for n in range(5)], rel=1e-3)
    assert [seen[place][1] for place in places[:2]] == pytest.approx([0.8, 0.85], rel=1e-3)
    assert (config.patience, config.schedule) == (4, "cyclic")
    assert each <= config.patience  # or the way up would count as a plateau


@pytest.mark.parametrize("name", ["cifar10_resnet18", "cifar10_small"])
def test_an_epoch_of_cifar10_has_the_published_steps(name):
    assert rates(recipe(name), 50_000)[0] == 391


@pytest.mark.parametrize(
    ("name", "epochs"),  # that end at 24, 32, 48 and 64 px
    [("cpu", (3, 5, 3, 1)), ("cpu_short", (3, 1, 0, 1)), ("cpu_long", (5, 7, 4, 2))],
)
def test_images_grow_from_24_pixels_to_64(name, epochs):
    config = recipe(name)
    assert config.epochs == sum(epochs)
    stages = resolution.parse(config.resolution_schedule)
    ends = (epoch / config.epochs for epoch in range(1, config.epochs + 1))
    sizes = [resolution.pixels_at(stages, end, 64) for end in ends]
    assert [sizes.count(pixels) for pixels in (24, 32, 48, 64)] == list(epochs)
    assert sizes == sorted(sizes)


def test_the_mixes_of_best_end_after_epoch_45():
    assert recipe("best").augmentation(64).mix_epochs == 45


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A folder with 12 images in the layout of Tiny ImageNet, and 18 of CIFAR-10, and what
    torchvision must be told for them.
    """
    folder = tmp_path_factory.mktemp("small")
    write_tree(folder / "tiny-imagenet-200", train=3, val=1)
    return folder, write_cifar10(folder, per_batch=3)


ACCEPT = """
from torchvision.datasets import CIFAR10
import cifar10, io, json, contextlib
for name, value in json.loads({told!r}).items():
    setattr(CIFAR10, name, value)
with contextlib.redirect_stdout(io.StringIO()):
    cifar10.fetch(__import__("pathlib").Path({folder!r}))
"""


@pytest.mark.parametrize("name", FILES)
def test_a_few_steps_by_its_own_command(zygote, small_data, tmp_path, name):
    folder, told = small_data
    changed = {"epochs": 1, "batch_size": 3, "workers": 0, "data_dir": str(folder)}
    if FIELDS["mistakes"].default == recipe(name).mistakes:
        changed["mistakes"] = 1
    patch = ACCEPT.format(told=json.dumps(told), folder=str(folder)) if "cifar" in name else ""
    run = Run(
        zygote,
        tmp_path,
        f"--config={FILES[name]}",
        *(f"--{key}={value}" for key, value in changed.items()),
        patch=patch,
    )
    assert run.wait() == 0, run.text
    wanted = {**read_recipe(FILES[name]), **changed}
    had = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert {key: had[key] for key in wanted} == wanted
    (row,) = history(run.folder)
    assert math.isfinite(float(row["val/loss"]))
    state = torch.load(run.folder / "last.pt", weights_only=True)
    group = state["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == wanted["weight_decay"]
    if wanted["model"] == "resnet18":
        begins_at_zero = wanted["init"] == "timm"  # and three steps do not take it far
        last_norm = state["model"]["layer1.0.bn2.weight"].mean()
        assert abs(last_norm - (0 if begins_at_zero else 1)) < 0.2
    if wanted["optimizer"] == "sgd":
        assert group["nesterov"] == wanted["nesterov"]
    assert state["schedule"]["step"] == {"tiny-imagenet": 3, "cifar10": 5}[wanted["dataset"]]
    pictures = {path.stem for path in (run.folder / "figures").iterdir()}
    assert {"curves", "classes", "mistakes", "gradcam"} <= pictures


def test_a_recipe_that_is_not_there_names_the_nearest(zygote, tmp_path):
    for missing in (REPO / "recipes" / "onecycle_sdg.yaml", "onecycle_sgd", "best.yaml"):
        run = Run(zygote, tmp_path, f"--config={missing}")
        assert run.wait() == 2
        assert "No such file" in run.text
        meant = "best" if missing == "best.yaml" else "onecycle_sgd"
        assert f"; did you mean recipes/{meant}.yaml?" in run.text


def test_a_run_from_before_a_field_was_there_goes_on_with_its_default(tmp_path):
    config = from_mapping({})
    before = {name: one.default for name, one in FIELDS.items() if name != "init"}
    compare_configs(before, config, tmp_path)
    with pytest.raises(Mistake, match="has init=timm, this call init=torch"):
        compare_configs(before, from_mapping({"init": "torch"}), tmp_path)
