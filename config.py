"""Every hyperparameter of a run, its unit, its range and its default; and how they are read.

Later wins: the defaults below < `--config=recipes/NAME.yaml` < the command line < the sweep's
parameters, which come from `wandb.config`. Nothing here needs torch or wandb: a mistake is answered
in under a second.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import resolution
import schedules
from augment import Augmentation
from cli import Mistake, Parser, did_you_mean, nearest
from data import DATASETS, NORMALIZATIONS, SPLITS
from model import INITS, check_name

if TYPE_CHECKING:
    import yaml

OPTIMIZERS = ("sgd", "muon", "adam", "adamw")
SWITCH = ("auto", "true", "false")
MOST_CYCLES = 1000  # torch halves the peak with each; beyond it overflows
TEXT_MAX = 4096  # characters, as many as a path may have


def _number(default: float, text: str, low: float, high: float, above: bool = False) -> Any:
    """A number in low..high; `above`: low itself is out."""
    return field(default=default, metadata={"help": text, "low": low, "high": high, "above": above})


def _choice(default: str, text: str, choices: Iterable[str]) -> Any:
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


def _plain(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    # data
    dataset: str = _choice("tiny-imagenet", "data set", DATASETS)
    data_dir: str = _plain("data", "the folder that contains the data set's folder")
    split: str = _choice(
        "pooled", "train + val pooled, val_fraction of each class held out; or as published", SPLITS
    )
    val_fraction: float = _number(0.3, "share of every class that validates", 0, 0.9, above=True)
    split_seed: int = _number(0, "decides which images validate, alone", 0, 2**31 - 1)
    image_size: int = _number(
        0, "pixels, side of the model's input; 0: as the data set has it", 0, 1024
    )
    center_crop: int = _number(
        0, "pixels, side of the middle that is kept of each stored image; 0: all of it", 0, 1024
    )
    normalization: str = _choice(
        "dataset",
        "mean and deviation of the pixels; copied: Tiny ImageNet's as public recipes have them",
        ("dataset", *NORMALIZATIONS),
    )
    workers: int = _number(2, "processes that load data; 0: none but the training's own", 0, 64)
    # augmentation
    aug_strength: float = _number(1.0, "0 none, 1 the fields below as written", 0, 2)
    crop_padding: int = _number(4, "pixels mirrored on each side before a random crop", 0, 64)
    flip: bool = _plain(True, "left-right flip of every second image")
    rotate_degrees: float = _number(5.0, "rotation, uniform in plus or minus this", 0, 90)
    cutout_size: int = _number(16, "pixels, side of each square hole; 0: none", 0, 512)
    cutout_holes: int = _number(1, "1 to so many holes", 1, 16)
    cutmix: float = _number(0.0, "probability a batch; 0: off", 0, 1)
    mixup: float = _number(0.0, "probability a batch; 0: off", 0, 1)
    mix_until: float = _number(1.0, "cutmix, mixup: share of the epochs that have them", 0, 1)
    # model
    model: str = _plain(
        "resnet18", "small, or a model of timm; ResNets get the 3x3 stem below 128 px"
    )
    init: str = _choice(
        "timm",
        "of the weights: timm's, whose ResNets start each residual branch at zero; ones: the same "
        "with every norm at one; torch: each layer's own default",
        INITS,
    )
    # optimisation
    epochs: int = _number(50, "times through the training images", 1, 10_000)
    batch_size: int = _number(
        128, "images a step; the last short batch of an epoch is kept", 1, 65_536
    )
    optimizer: str = _choice(
        "sgd", "the algorithm; muon: of convolutions, with sgd for the rest", OPTIMIZERS
    )
    nesterov: bool = _plain(True, "sgd and muon with momentum above 0: Nesterov's kind")
    schedule: str = _choice("onecycle", "of the learning rate", schedules.KINDS)
    anneal: str = _choice("cosine", "onecycle: the way up and down", schedules.ANNEALS)
    max_lr: float = _number(0.1, "the highest learning rate", 0, 100, above=True)
    base_lr: float = _number(1.0e-4, "cyclic: the lowest learning rate", 0, 100)
    warmup_fraction: float = _number(0.3, "onecycle: share of the steps until max_lr", 0, 1)
    div_factor: float = _number(25.0, "onecycle: begins at max_lr / this", 1, 1.0e6)
    final_div_factor: float = _number(
        1.0e4, "onecycle: ends at max_lr / div_factor / this", 1, 1.0e9
    )
    cycle_epochs: float = _number(10.0, "cyclic: epochs of one triangle", 0, 10_000, above=True)
    patience: int = _number(
        4, "plateau, cyclic: epochs without a better loss; one more brings a cut", 0, 10_000
    )
    factor: float = _number(
        0.1, "plateau, cyclic: a cut multiplies the rate by this", 0, 1, above=True
    )
    step_epochs: int = _number(30, "step: epochs between two cuts", 1, 10_000)
    gamma: float = _number(0.1, "step: a cut multiplies the rate by this", 0, 1, above=True)
    momentum: float = _number(0.9, "of SGD and Muon; Adam's first beta", 0, 0.9999)
    cycle_momentum: bool = _plain(
        False,
        "onecycle, cyclic: move momentum against the rate, 0.95 to 0.85 and back (cyclic: 0.9 to "
        "0.8), whatever `momentum` says; torch's default",
    )
    weight_decay: float = _number(
        5.0e-4, "on weights, not on norms, biases and what Muon trains", 0, 10
    )
    l1: float = _number(0.0, "times the sum of the absolute weights, added to the loss", 0, 1)
    label_smoothing: float = _number(0.0, "share of each label spread over all classes", 0, 0.9999)
    ema: float = _number(0.0, "decay a step of the averaged weights; 0: off", 0, 0.99999)
    # speed
    device: str = _plain("auto", "auto, cpu, cuda, cuda:1, mps")
    amp: str = _choice("auto", "bf16 autocast; auto: where the device gains by it", SWITCH)
    compile: str = _choice("auto", "torch.compile; auto: in long runs on a GPU or with AMX", SWITCH)
    winograd: str = _choice(
        "auto", "on a CPU: Winograd's and other 3x3 convolutions; auto: where they gain", SWITCH
    )
    resolution_schedule: str = _plain(
        resolution.FULL,
        "full, or images that grow: 32:0.67,48:0.9 trains at 32 px until 67% of the steps, at "
        "48 until 90%, then at full size, and measures an epoch at the pixels of its last step",
    )
    # bookkeeping
    seed: int = _number(0, "of weights, order and augmentation", 0, 2**31 - 1)
    output_dir: str = _plain("runs", "the folder of the runs' folders")
    mistakes: int = _number(24, "misclassified images to show", 0, 1000)
    resume: str = _choice(
        "auto", "auto: go on with a run of this id; never: refuse to", ("auto", "never")
    )

    def __post_init__(self):
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, _checked(one, getattr(self, one.name)))
        if self.schedule == "cyclic" and self.base_lr > self.max_lr:
            raise Mistake(f"base_lr={self.base_lr} must not be above max_lr={self.max_lr}")
        if self.schedule == "cyclic" and self.epochs > MOST_CYCLES * self.cycle_epochs:
            raise Mistake(f"cycle_epochs={self.cycle_epochs} makes more than {MOST_CYCLES} cycles")
        if 0 < self.image_size < 8:
            raise Mistake(
                f"image_size={self.image_size} must be 8 to 1024, or 0 for the data set's own"
            )
        if 0 < self.center_crop < 8:
            raise Mistake(f"center_crop={self.center_crop} must be 8 to 1024, or 0 for none")
        if self.compile == self.winograd == "true":
            raise Mistake("compile=true and winograd=true exclude each other")
        stages = resolution.parse(self.resolution_schedule)
        if self.image_size:
            resolution.check_sizes(stages, self.image_size)
        check_name(self.model)

    def augmentation(self, stored_size: int) -> Augmentation:
        """What is in force on images of `stored_size` pixels."""
        recipe = Augmentation(
            crop_padding=self.crop_padding,
            flip=0.5 * self.flip,
            rotate_degrees=self.rotate_degrees,
            cutout_size=self.cutout_size,
            cutout_holes=self.cutout_holes,
            cutmix=self.cutmix,
            mixup=self.mixup,
            mix_epochs=int(self.mix_until * self.epochs + 0.5),
        )
        return recipe.at_strength(self.aug_strength, stored_size)

    def normalizer(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return NORMALIZATIONS[
            self.dataset if self.normalization == "dataset" else self.normalization
        ]


def _checked(one: dataclasses.Field, value: Any) -> Any:
    """The value in the field's type and range; a Mistake that names both otherwise."""
    kind, about = one.type, one.metadata
    if about.get("choices") == SWITCH:
        # YAML and sweeps make True of `true`.
        value = (value if isinstance(value, str) else _shown(value)).lower()
    if kind is str:
        if not _is_line(value):
            wanted = f"a text of one line, up to {TEXT_MAX} characters"
            quotes = "" if isinstance(value, str) else "; YAML needs quotes around this one"
            raise Mistake(f"{one.name}={_shown(value)} must be {wanted}{quotes}")
        choices = about.get("choices")
        if choices and value not in choices:
            raise Mistake(
                f"{one.name}={_shown(value)} is not one of {', '.join(choices)}"
                + did_you_mean(value, choices)
            )
        return value
    if kind is bool:
        return _boolean(one.name, value)
    number = _finite(one.name, kind, value)
    low, high = about["low"], about["high"]
    if not low <= number <= high or (about["above"] and number == low):
        bounds = f"above {low:g} and up to {high:g}" if about["above"] else f"{low:g} to {high:g}"
        raise Mistake(f"{one.name}={_shown(number)} is out of range: {bounds}")
    return number


def _shown(value: Any) -> str:
    """The value in a message: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write thousands of digits
        text = "a huge number"
    return text if len(text) <= 100 else f"{text[:80]}…"


def _is_line(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.splitlines() == [value] and len(value) <= TEXT_MAX


def _finite(name: str, kind: type, value: Any) -> int | float:
    """A whole number for an int field (128.0, too, as in sweeps), any finite one for a float."""
    wanted = "a whole number" if kind is int else "a number"
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise Mistake(f"{name}={_shown(value)} must be {wanted}")
    return int(number) if kind is int else number


def _boolean(name: str, value: Any) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise Mistake(f"{name}={_shown(value)} must be true or false")


FIELDS = {one.name: one for one in dataclasses.fields(Config)}
MAY_DIFFER = ("data_dir", "output_dir", "workers", "mistakes", "resume")  # when a run goes on
# Flags that may be given with a run that was made before: they change nothing of it.
WITH_A_RUN = ("data_dir", "device", "amp", "batch_size", "workers", "mistakes")


def from_mapping(
    values: Mapping[str, Any], base: Mapping[str, Any] | None = None, source: str = ""
) -> Config:
    """A Config of `values` over `base` over the defaults; an unknown key names the nearest."""
    for key in values:
        if key not in FIELDS:
            where = f"{source}: " if source else ""
            hint = did_you_mean(key, FIELDS) if isinstance(key, str) else ""
            raise Mistake(f"{where}unknown key {_shown(key)}{hint}")
    return Config(**{**(base or {}), **values})


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, checked one by one."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        odd = _first_odd(text)
        values = None if odd else yaml.safe_load(text)
    except OSError as error:
        recipes = [one.stem for one in (Path(__file__).parent / "recipes").glob("*.yaml")]
        alike = nearest(path.stem, recipes)
        hint = f"; did you mean recipes/{alike[0]}.yaml?" if alike else ""
        raise Mistake(f"--config={path}: {error.strerror or error}{hint}") from error
    # No Unicode, a 13th month, a number of thousands of digits: errors that are not YAML's own.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        at = _at(getattr(error, "problem_mark", None))
        raise Mistake(f"--config={path}{at}: this is no YAML") from error
    if not isinstance(values, dict):
        raise Mistake(f"--config={path}{_at(odd)}: plain lines of `key: value` are needed")
    from_mapping(values, source=f"--config={path}")
    return values


def _first_odd(text: str) -> "yaml.Mark | None":
    """Where this YAML is more than one list of plain values: there it nests, or has an alias or a
    tag. A few lines of those keep its reader busy for ever.
    """
    import yaml

    collections = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        collections += isinstance(event, yaml.CollectionStartEvent)
        if collections > 1 or isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            return event.start_mark
    return None


def _at(mark: "yaml.Mark | None") -> str:
    return f", line {mark.line + 1}" if mark else ""


def add_arguments(parser: Parser) -> None:
    """One flag a field, in groups as the fields stand in Config; nothing given leaves no trace."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a recipe: YAML of the keys below"
    )
    group = parser.add_argument_group("hyperparameters: --key=value, in a recipe, or in a sweep")
    _add_fields(group, FIELDS)


def add_looks(parser: Parser) -> None:
    """The flags that may be given with a run that was made before."""
    _add_fields(parser.add_argument_group("where and how to look"), WITH_A_RUN, "as the run has it")


def _add_fields(group: argparse._ArgumentGroup, names: Iterable[str], otherwise: str = "") -> None:
    for name in names:
        one, about = FIELDS[name], FIELDS[name].metadata
        choices = about.get("choices")
        metavar = (
            "|".join(choices)
            if choices and len("|".join(choices)) < 40
            else ("NAME" if one.type is str else "true|false" if one.type is bool else "N")
        )
        listed = f"; {', '.join(choices)}" if choices and metavar == "NAME" else ""
        bounds = f", {about['low']:g} to {about['high']:g}" if "low" in about else ""
        text = f"{about['help']}{bounds}{listed}"
        group.add_argument(
            f"--{name}",
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {otherwise or one.default})".replace("%", "%%"),
        )


def from_arguments(options: argparse.Namespace) -> Config:
    """Defaults < recipe < command line."""
    recipe = read_recipe(options.config) if options.config else {}
    return from_mapping(given(options), recipe)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The keys that stand on the command line."""
    return {name: value for name, value in vars(options).items() if name in FIELDS}
