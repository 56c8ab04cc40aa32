"""What a sweep hands to a run, and to one that is handed out again, as tables; then by train.py."""

import os
from pathlib import Path

import pytest
import yaml

import suggestion
from cli import Mistake
from config import Config, to_dict
from runs import summary

FIRST = {"max_lr": 0.1, "aug_strength": 1}
# As W&B's server hands a preempted run out again: its whole config.
AGAIN = {**to_dict(Config(max_lr=0.1, data_dir="/old", workers=3)), "output_dir": "/old/runs"}
AGAIN |= {"split_fingerprint": "abc", "parameters": 99530, "_wandb": {"t": {"1": [1, 5]}}}
AGAIN |= {"training_images": 100, "validation_images": 40, "full_pixels": 32}


def flags(told: dict) -> list[str]:
    """As the agent's ${args}."""
    return [f"--{key}={value}" for key, value in told.items()]


def words(told: dict) -> list[str]:
    """As the agent's ${args_no_equals}."""
    return [word for key, value in told.items() for word in (f"--{key}", str(value))]


def parsed(arguments: list[str]) -> Config:
    import cli
    import config

    parser = cli.Parser()
    config.add_arguments(parser)
    return config.from_arguments(parser.parse_args(arguments))


@pytest.mark.parametrize("as_arguments", [flags, words])
def test_a_first_call_stays_as_it_is(given, as_arguments):
    arguments = ["--config=recipe.yaml", *as_arguments(FIRST)]
    path = given(FIRST)
    assert suggestion.take(arguments) == arguments
    assert os.environ["WANDB_SWEEP_PARAM_PATH"] == str(path)


OURS = {key: AGAIN[key] for key in to_dict(Config())}


@pytest.mark.parametrize("as_arguments", [flags, words])
@pytest.mark.parametrize("before", [[], ["--workers=3"], ["--data_dir", "/old", "--seed=0"]])
def test_one_that_is_handed_out_again_has_the_config_that_it_had(given, as_arguments, before):
    given(AGAIN)
    taken = suggestion.take([*before, *as_arguments(AGAIN)])
    assert to_dict(parsed(taken)) == OURS
    assert suggestion.given() == OURS  # what W&B's client reads


def test_where_the_command_hands_nothing_on_the_parameters_do(given):
    given(AGAIN)
    assert suggestion.take(["--seed=0"]) == ["--seed=0"]
    assert suggestion.given() == OURS


@pytest.mark.parametrize("as_arguments", [flags, words])
@pytest.mark.parametrize("here_first", [True, False])
@pytest.mark.parametrize("folder", ["/here", "data"])  # the second one is the default
def test_the_folders_of_another_machine_do_not_count(given, as_arguments, here_first, folder):
    given(AGAIN)
    here = [f"--data_dir={folder}", "--output_dir", "runs"]
    parts = [here, as_arguments(AGAIN)] if here_first else [as_arguments(AGAIN), here]
    config = parsed(suggestion.take([*parts[0], *parts[1]]))
    assert (config.data_dir, config.output_dir, config.workers) == (folder, "runs", 3)
    found = suggestion.given()
    assert (found["data_dir"], found["output_dir"], found["workers"]) == (folder, "runs", 3)


def test_a_run_goes_on_in_its_folder_where_that_is_here(given, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    again = {**AGAIN, "output_dir": str(tmp_path / "there")}
    given(again)
    arguments = ["--output_dir=here", *flags(again)]
    assert parsed(suggestion.own(again, arguments, "r1")[1]).output_dir == "here"
    (tmp_path / "there" / "r1").mkdir(parents=True)
    (tmp_path / "there" / "r1" / "config.yaml").touch()
    assert parsed(suggestion.take(arguments)).output_dir == again["output_dir"]
    assert suggestion.output_dir(Config(output_dir="here")) == tmp_path / "there"


@pytest.fixture
def given(tmp_path, monkeypatch):
    def write(told: dict) -> Path:
        path = tmp_path / "parameters.yaml"
        values = {key: {"value": value} for key, value in told.items()}
        path.write_text(yaml.safe_dump({"wandb_version": 1, **values}))
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
        return path

    return write


@pytest.mark.parametrize(
    ("by_call", "told", "folder"),
    [
        ("runs", {"seed": 1}, "runs"),
        ("there", {"seed": 1}, "there"),
        ("runs", {"output_dir": "/scratch"}, "/scratch"),
        ("there", {"output_dir": "/scratch"}, "/scratch"),  # a parameter is the stronger one
    ],
)
def test_where_a_run_is(given, by_call, told, folder):
    given(told)
    assert suggestion.output_dir(Config(output_dir=by_call)) == Path(folder)


def test_what_a_run_has_added_is_no_hyperparameter():
    assert to_dict(suggestion.over(AGAIN)) == OURS
    with pytest.raises(Mistake, match="the sweep: unknown key 'max_lrr'; did you mean 'max_lr'"):
        suggestion.over({"max_lrr": 1})


def test_a_parameter_says_where_the_run_and_all_of_w_and_bs_files_are(start, given, tmp_path):
    """Where the sweep's command hands no parameters on."""
    path = given({"output_dir": str(tmp_path / "there"), "epochs": 1})
    run = start(tmp_path, env={"WANDB_SWEEP_PARAM_PATH": str(path)})
    assert run.wait() == 0, run.text
    assert not run.folder.exists()
    folder = tmp_path / "there" / "run"
    assert summary(folder)["state"] == "finished"
    (record,) = (folder / "wandb").glob("offline-run-*")
    assert f"`wandb sync {record}`" in run.text


def test_parameters_that_are_not_there(start, tmp_path):
    """Without them it would be another run."""
    nowhere = tmp_path / "nowhere.yaml"
    run = start(tmp_path, env={"WANDB_SWEEP_PARAM_PATH": str(nowhere)})
    assert run.wait() == 2
    assert run.text.startswith(f"error: WANDB_SWEEP_PARAM_PATH={nowhere}: there is no such file")
    assert not run.folder.exists()


def test_two_ids_are_one_too_many(start, tmp_path):
    run = start(tmp_path, env={"WANDB_RUN_ID": "other"})
    assert run.wait() == 2
    assert run.text == "error: --run_id=run and WANDB_RUN_ID=other differ; give one of them\n"
    assert not run.folder.exists()
