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
from config import Config, from_mapping

FILE = "WANDB_SWEEP_PARAM_PATH"
# Keys that a run adds to the config that W&B shows.
ADDED = (
    "split_fingerprint",
    "parameters",
    "training_images",
    "validation_images",
    "full_pixels",  # side of the model's input once the images have grown
)
FOLDERS = ("data_dir", "output_dir")


def in_sweep() -> bool:
    return bool(os.environ.get(FILE) or os.environ.get("WANDB_SWEEP_ID"))


def read_parameters(path: Path) -> dict[str, Any]:
    """Of a file as the agent writes it; nothing where there is none."""
    import yaml

    if not path.is_file():
        return {}
    told = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: one["value"] for key, one in told.items() if isinstance(one, dict)}


def given() -> dict[str, Any]:
    """The parameters of this run."""
    path = os.environ.get(FILE)
    if path and not Path(path).is_file():
        raise Mistake(f"{FILE}={path}: there is no such file of parameters")
    return read_parameters(Path(path)) if path else {}


def is_added(key: str) -> bool:
    return key in ADDED or key.startswith("_")


def is_again(told: Mapping[str, Any]) -> bool:
    return any(map(is_added, told))


def own(
    told: Mapping[str, Any], arguments: Sequence[str], run_id: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Parameters and arguments as a first start has them.

    Of a folder the call's own word counts, if it has one beside that of the former machine; but a
    run goes on in its folder, where that is here, too.
    """
    if not is_again(told):
        return dict(told), list(arguments)
    parser = Parser(add_help=False)
    for key in filter(is_added, told):
        parser.add_argument(f"--{key}")
    for key in FOLDERS:
        parser.add_argument(f"--{key}", action="append", default=[])
    found, left = parser.parse_known_args(arguments)
    parameters = {key: value for key, value in told.items() if not is_added(key)}
    former = Path(str(told.get("output_dir", Config.output_dir))) / (run_id or "")
    stays = ("output_dir",) if run_id and (former / "config.yaml").is_file() else ()
    for key in FOLDERS:
        values = getattr(found, key)
        here = [value for value in values if value != str(told.get(key)) and key not in stays]
        if here:
            parameters[key] = here[-1]
        left += [f"--{key}={parameters.get(key, value)}" for value in values[-1:]]
    return parameters, left


def take(arguments: Sequence[str]) -> list[str]:
    """This call's arguments as a first start has them, and W&B's client finds the parameters so."""
    told = given()
    if not is_again(told):
        return list(arguments)
    import yaml

    from run_folder import writing

    parameters, left = own(told, arguments, os.environ.get("WANDB_RUN_ID"))
    handed = Path(os.environ[FILE])  # each process of a run writes its own
    path = handed.with_name(f"{handed.stem}-{os.getpid()}{handed.suffix}")
    values = {key: {"value": value} for key, value in parameters.items()}
    with writing(path) as file:
        file.write(yaml.safe_dump({"wandb_version": 1, **values}).encode())
    os.environ[FILE] = str(path)
    return left


def over(told: Mapping[str, Any]) -> Config:
    """What W&B's config says."""
    values = {key: value for key, value in told.items() if not is_added(key)}
    return from_mapping(values, source="the sweep")


def output_dir(config: Config) -> Path:
    """For those who need it before W&B's client says what the config is."""
    return Path(str(given().get("output_dir", config.output_dir)))
