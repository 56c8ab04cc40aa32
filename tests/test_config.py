import dataclasses
import math
import subprocess
import sys
import time

import pytest
import yaml

import config
from cli import Mistake, Parser
from config import FIELDS, Config, from_mapping, read_recipe
from conftest import REPO, assert_mistake, run


def parse(*arguments: str) -> Config:
    parser = Parser()
    config.add_arguments(parser)
    return config.from_arguments(parser.parse_args(list(arguments)))


def test_defaults_are_valid_and_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_lr = 1.0
    assert parse() == Config()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_help_and_comes_back_from_the_command_line(name):
    assert FIELDS[name].metadata["help"]
    default = getattr(Config(), name)
    assert getattr(parse(f"--{name}={default}"), name) == default


ACCEPTED = [
    ("max_lr", "1e-3", 0.001),
    ("max_lr", 1, 1.0),
    ("epochs", 20.0, 20),
    ("flip", "False", False),
    ("flip", "TRUE", True),
    ("amp", False, "false"),
    ("amp", "True", "true"),
    ("compile", "auto", "auto"),
    ("image_size", 0, 0),
    ("aug_strength", 0, 0.0),
]


@pytest.mark.parametrize(("name", "given", "value"), ACCEPTED)
def test_accepted(name, given, value):
    got = getattr(from_mapping({name: given}), name)
    assert got == value
    assert type(got) is type(value)


NUMBERS = [name for name, one in FIELDS.items() if "low" in one.metadata]
REFUSED = [
    *((name, bad) for name in NUMBERS for bad in (math.nan, math.inf, -math.inf, "x", None, True)),
    *((name, FIELDS[name].metadata["low"] - 1) for name in NUMBERS),
    *((name, FIELDS[name].metadata["high"] + 1) for name in NUMBERS),
    *((name, 0) for name in NUMBERS if FIELDS[name].metadata["above"]),
    *((name, 1.5) for name in NUMBERS if FIELDS[name].type is int),
    *(
        (name, bad)
        for name in ("dataset", "optimizer", "schedule", "model")
        for bad in ("x", 1, "")
    ),
    *(("flip", bad) for bad in ("1", 1, "yes", "", None)),
    ("amp", "maybe"),
    ("image_size", 7),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused_with_name_and_value(name, value):
    with pytest.raises(Mistake) as mistake:
        from_mapping({name: value})
    assert name in str(mistake.value)
    assert str(value) in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_precedence(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_lr: 0.3\nepochs: 7\n")
    got = parse(f"--config={recipe}", "--epochs=9")
    assert (got.max_lr, got.epochs, got.momentum) == (0.3, 9, Config().momentum)


BAD_RECIPES = {
    "missing": (None, ["nowhere.yaml", "No such file"]),
    "no yaml": ('max_lr: "1\nx: }', ["recipe.yaml, line", "no YAML"]),
    "a list": ("- 1\n- 2\n", ["recipe.yaml", "key: value"]),
    "unknown key": ("max_lrr: 0.1\n", ["recipe.yaml", "'max_lrr'", "did you mean 'max_lr'"]),
    "out of range": ("epochs: 0\n", ["epochs=0", "1 to 10000"]),
    "a lowest rate above the highest": (
        "schedule: cyclic\nbase_lr: 0.2\n",
        ["base_lr=0.2", "max_lr=0.1"],
    ),
    "two that exclude each other": (
        "compile: true\nwinograd: true\n",
        ["compile=true", "winograd=true"],
    ),
    "a number base 60 for a text": (
        "resolution_schedule: 32:0.67\n",
        ["resolution_schedule=1920.67", "YAML needs quotes around this one"],
    ),
    "cycles without end": ("schedule: cyclic\ncycle_epochs: 0.04\n", ["cycle_epochs=0.04", "1000"]),
    "binary": (b"\xff\xfe\x00", ["recipe.yaml", "no YAML"]),
    "nested": ("epochs: 3\nmax_lr: [1\nx: }", ["recipe.yaml, line 2", "key: value"]),
    "nested deeply": ("[" * 100_000, ["recipe.yaml, line 1", "key: value"]),
    "an alias": ("&all\nmax_lr: *all\n", ["recipe.yaml, line 2", "key: value"]),
    "merged into itself": ("&all\n" + "<<: *all\n" * 99, ["recipe.yaml, line 2", "key: value"]),
    "a tag": ("epochs: !!int ''\n", ["recipe.yaml, line 1", "key: value"]),
    "a 13th month": ("epochs: 2024-13-45\n", ["recipe.yaml", "no YAML"]),
    "a number base 60 without end": (f"epochs: {'1:' * 400}1.5\n", ["recipe.yaml", "no YAML"]),
    "too many digits": (f"epochs: {'9' * 5000}\n", ["recipe.yaml", "no YAML"]),
    "too many digits in base 16": (f"epochs: 0x{'f' * 5000}\n", ["epochs=", "whole number"]),
    "a switch of as many": (f"amp: 0x{'f' * 5000}\n", ["amp=", "not one of auto, true, false"]),
    "a key of as many": (f"? 0x{'f' * 5000}\n: 1\n", ["recipe.yaml", "unknown key"]),
}


@pytest.mark.parametrize("bad", BAD_RECIPES)
def test_bad_recipe(tmp_path, bad):
    content, words = BAD_RECIPES[bad]
    path = tmp_path / ("nowhere.yaml" if content is None else "recipe.yaml")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Mistake) as mistake:
        parse(f"--config={path}")
    for word in words:
        assert word in str(mistake.value)
    assert "\n" not in str(mistake.value)


LONG = {  # that would fill the screen, take for ever or raise what is no Mistake
    "lines": ("model", "a\nb\nc"),
    "a NUL": ("data_dir", "a\0b"),
    "a long path": ("output_dir", "x" * 5000),
    "a long text": ("max_lr", "x" * 1_000_000),
    "lines around a number": ("epochs", "\n0\n"),
    "many digits": ("seed", 10**5000),
    "many digits, inside": ("flip", [10**5000]),
    "many pixels": ("resolution_schedule", "9" * 5000 + ":0.5"),
    "a long share": ("resolution_schedule", "8:" + "9" * 100_000 + "x"),
    "a long key": ("x" * 5000, 1),
    "a key of many digits": (10**5000, 1),
}


@pytest.mark.parametrize("case", LONG)
def test_a_long_value_is_refused_in_a_short_line(case):
    name, value = LONG[case]
    with pytest.raises(Mistake) as mistake:
        from_mapping({name: value})
    assert "\n" not in str(mistake.value)
    assert len(str(mistake.value)) < 200


MISTAKES = {
    "--epocs=3": "did you mean '--epochs'",
    "--max_lr=nan": "max_lr='nan' must be a number",
    "--optimizer=sdg": "did you mean 'sgd'",
    "--model=resnet81": "did you mean 'resnet18'",
    # Also, torch is to come behind W&B's client, which is imported while the data is looked at.
    "--data_dir=nowhere": "no tiny-imagenet-200/ in --data_dir=nowhere",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_on_the_command_line_is_answered_without_torch(tmp_path, argument):
    assert_mistake(run("train.py", argument, cwd=tmp_path), MISTAKES[argument])
    imports = f"import sys; sys.argv = ['train.py', {argument!r}]\nimport cli, train\n" + (
        "try: cli.run(train.command)\n"
        "except SystemExit: print('torch' in sys.modules or 'wandb' in sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", imports], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert time.perf_counter() - start < 5  # under 1 s on an idle machine


def test_the_readme_names_every_field():
    text = (REPO / "README.md").read_text()
    assert [name for name in FIELDS if f"`{name}`" not in text] == []


def test_help_names_every_field_once(tmp_path):
    done = run("train.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in FIELDS:
        assert done.stdout.count(f"\n  --{name} ") == 1, name


def test_the_sweep_file_fits_config_and_metrics():
    sweep = yaml.safe_load((REPO / "sweep.yaml").read_text())
    for name, about in sweep["parameters"].items():
        for bound in ("min", "max", "value"):
            if bound in about:
                from_mapping({name: about[bound]})
        if FIELDS[name].type is float:
            assert isinstance(about["min"], float) and isinstance(about["max"], float)
    assert (REPO / sweep["program"]).is_file()
    epochs = sweep["parameters"]["epochs"]["value"]
    stop = sweep["early_terminate"]
    assert stop["min_iter"] * stop["eta"] < epochs  # two bands at least
    assert {"impute", "name", "goal"} <= set(sweep["metric"])
    assert sweep["run_cap"] > 0
    assert sweep["command"][-1] == "${args}"  # after the recipe, which it overrules
    (recipe,) = (word for word in sweep["command"] if word.startswith("--config=recipes/"))
    lowest, highest = (sweep["parameters"]["max_lr"][bound] for bound in ("min", "max"))
    assert lowest < read_recipe(REPO / recipe.removeprefix("--config="))["max_lr"] < highest


def test_what_is_in_force_is_a_law_of_the_fields():
    now = Config(flip=True, crop_padding=8, aug_strength=0.5).augmentation(64)
    assert (now.flip, now.crop_padding) == (0.25, 4)
    assert Config(flip=False).augmentation(64).flip == 0
    ends = [(0.9, 50, 45), (1.0, 3, 3), (0.0, 3, 0), (0.5, 3, 2), (0.1, 3, 0)]
    for share, epochs, last in ends:
        mixing = Config(mix_until=share, epochs=epochs).augmentation(64)
        assert mixing.mix_epochs == last
    assert Config(normalization="imagenet").normalizer()[0] == (0.485, 0.456, 0.406)
    assert Config(dataset="cifar10").normalizer()[0] == (0.4914, 0.4822, 0.4465)
