"""What a sweep hands to a run: parameters, in a file and, if the sweep's command says so, in
arguments.

A run that was preempted is handed out again with its whole config in their place (wandb#4237,
wandb#9143): with what runs and W&B's client have added to it, which is no hyperparameter, and with
the folders of the machine that had it, which here may be others.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import Mistake, Parser
from config import FIELDS, MAY_DIFFER, Config, from_mapping

# Keys that a run adds to the config that W&B shows.
ADDED = ("split_fingerprint", "parameters", "training_images", "validation_images")


def in_sweep() -> bool:
    return bool(os.environ.get("WANDB_SWEEP_PARAM_PATH") or os.environ.get("WANDB_SWEEP_ID"))


def read_parameters(path: Path) -> dict[str, Any]:
    """Of a file as the agent writes it; nothing where there is none."""
    import yaml

    if not path.is_file():
        return {}
    told = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: one["value"] for key, one in told.items() if isinstance(one, dict)}


def given() -> dict[str, Any]:
    """What this run was handed, all of it."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if path and not Path(path).is_file():
        raise Mistake(f"WANDB_SWEEP_PARAM_PATH={path}: there is no such file of parameters")
    return read_parameters(Path(path)) if path else {}


def is_added(key: str) -> bool:
    return key in ADDED or key.startswith("_")


def is_again(told: Mapping[str, Any]) -> bool:
    return any(is_added(key) for key in told)


def own_arguments(arguments: Sequence[str], told: Mapping[str, Any]) -> list[str]:
    """Without what only a run that is handed out again has; where the call says twice what may
    differ between two starts, the one that is not the former machine's counts.
    """
    if not is_again(told):
        return list(arguments)
    parser = Parser(add_help=False)
    for key in filter(is_added, told):
        parser.add_argument(f"--{key}")
    for key in MAY_DIFFER:
        parser.add_argument(f"--{key}", action="append", default=[])
    found, own = parser.parse_known_args(arguments)
    for key in MAY_DIFFER:
        values = getattr(found, key)
        here = [value for value in values if value != str(told.get(key))] or values
        own += [f"--{key}={value}" for value in here[-1:]]
    return own


def over(config: Config, told: Mapping[str, Any]) -> Config:
    """The sweep's parameters, as W&B's config has them, over what the call says; but not a former
    machine's folders.
    """
    values = {key: value for key, value in told.items() if not is_added(key)}
    if is_again(given()):
        here = {key: getattr(config, key) for key in MAY_DIFFER}
        values |= {key: value for key, value in here.items() if value != FIELDS[key].default}
    return from_mapping(values, source="the sweep")


def output_dir(by_call: str, told: Mapping[str, Any]) -> Path:
    """As `over` has it: for those who need it before W&B's client says what the config is."""
    here = is_again(told) and by_call != Config.output_dir
    return Path(by_call if here else str(told.get("output_dir", by_call)))
