"""`python sweep.py check`: what W&B would reject or silently misread."""

import copy
import re

import pytest
import yaml

import sweep_file
from conftest import REPO, assert_mistake, run
from sweep_file import check, most_epochs, output_dir_of
from sweep_parameters import distribution


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(REPO)  # as users call it


GOOD = yaml.safe_load((REPO / "sweep.yaml").read_text())
NOWHERE = object()


def changed(path: str, value) -> dict:
    """sweep.yaml with one key (a/b/c) set, or removed."""
    sweep = copy.deepcopy(GOOD)
    *parents, last = path.split("|")
    place = sweep
    for key in parents:
        place = place.setdefault(key, {})
    if value is NOWHERE:
        del place[last]
    else:
        place[last] = value
    return sweep


ERRORS = [  # where, what, words of the answer
    ("tags", ["a"], "unknown key 'tags'"),
    ("settings", {}, "unknown key 'settings'"),
    ("apiVersion", "v1", None),
    ("name", 2026, "name=2026 must be a text"),
    ("name", None, "name has no value"),
    ("early_terminate", None, "early_terminate has no value"),
    ("run_cap", None, "run_cap has no value"),
    ("kind", "search", "kind='search' must be 'sweep'"),
    ("kind", "sweep", None),
    ("early_terminate|eta", 1.05, "must be 1.1 or more"),
    ("program", ["train.py"], "must be a text"),
    ("controller", "local", "`type: cloud` or `type: local`"),
    ("controller", {"type": "cloud"}, None),
    ("job", "me/p/job:latest", "job is for W&B Launch"),
    ("metrics", [], "give one `metric`"),
    ("scheduler", {"engine": "wandb"}, "refuses it with early_terminate"),
    ("parametres", {}, "did you mean 'parameters'"),
    ("method", "bayse", "bayes, random, grid"),
    ("program", "trian.py", "no such file"),
    ("program", NOWHERE, "program is missing"),
    ("metric", NOWHERE, "metric is missing"),
    ("metric|name", "val/accuracy", "did you mean 'val/acc'"),
    ("metric|name", "best_val_acc", "too late"),
    ("metric|goal", "max", "minimize or maximize"),
    ("metric|gaol", "maximize", "unknown key 'gaol'"),
    ("parameters", {}, "parameters are missing"),
    ("parameters|max_lrr", {"min": 0.1, "max": 1.0}, "did you mean 'max_lr'"),
    ("parameters|max_lr", 0.1, "write `value: 0.1`"),
    ("parameters|max_lr", {"min": "1e-3", "max": 0.1}, "write 0.001"),
    ("parameters|max_lr", {"min": 1, "max": 3}, "write min: 1.0, max: 3.0"),
    ("parameters|aug_strength", {"min": 0, "max": 2}, "write min: 0.0, max: 2.0"),
    ("parameters|aug_strength", {"min": 0.0, "max": 3.0}, "aug_strength=3.0 is out of range"),
    ("parameters|max_lr", {"min": 0.1, "max": 0.01}, "must be below"),
    (
        "parameters|max_lr",
        {"min": 0.0, "max": 0.1, "distribution": "log_uniform_values"},
        "above 0",
    ),
    ("parameters|max_lr", {"min": 0.1, "max": 1.0, "distribution": "uniforn"}, "'uniform'"),
    ("parameters|max_lr", {"min": 0.1, "max": 1.0, "distribution": "log_uniform"}, None),
    ("parameters|max_lr", {"min": 0.1, "max": 9.0, "distribution": "log_uniform"}, "out of range"),
    (
        "parameters|max_lr",
        {"min": 0.1, "max": 900.0, "distribution": "log_uniform"},
        "max=900.0 are exponents of e",
    ),
    # exp(-8) .. exp(-1), not exp(1) .. exp(8)
    ("parameters|max_lr", {"min": 1.0, "max": 8.0, "distribution": "inv_log_uniform"}, None),
    ("parameters|max_lr", {"min": 0.1, "max": 1}, "W&B refuses min=0.1 with max=1"),
    ("parameters|max_lr", {"min": 0.1, "max": 1, "distribution": "uniform"}, None),
    ("parameters|max_lr", {"min": 0.1}, "uniform needs max"),
    ("parameters|max_lr", {"min": 0.1, "maxx": 1.0}, "unknown key 'maxx'"),
    ("parameters|max_lr", {"value": "1e-2"}, "write 0.01"),
    ("parameters|max_lr", {"values": [0.1, "1e-2"]}, "write 0.01"),
    ("parameters|max_lr", {"values": 0.1}, "must be a list"),
    ("parameters|max_lr", {"values": [0.1, 0.2], "probabilities": [0.5, 0.6]}, "add up to 1"),
    ("parameters|max_lr", {"values": [0.1, 0.2], "probabilities": [1.0]}, "as many as"),
    ("parameters|optimizer", {"values": ["sgd", "adamm"]}, "did you mean 'adam'"),
    ("parameters|optimizer", {"min": 0.0, "max": 1.0}, "this is no number"),
    ("parameters|batch_size", {"min": 32.0, "max": 64.5}, "use int_uniform"),
    ("parameters|batch_size", {"min": 32, "max": 64}, None),
    (
        "parameters|batch_size",
        {"min": 32.0, "max": 64, "distribution": "int_uniform"},
        "needs both without a point",
    ),
    ("parameters|max_lr", {"parameters": {"a": {"value": 1}}}, "nested"),
    ("parameters|max_lr", {"distribution": "log_normal", "mu": -3.0, "sigma": 1.0}, None),
    (
        "parameters|aug_strength",
        {"distribution": "normal", "mu": 3, "sigma": 1},
        "half of the draws of normal fail: aug_strength=",
    ),
    (
        "parameters|max_lr",
        {"distribution": "log_normal", "mu": 1e5, "sigma": 1},
        "max_lr=inf must be a number",
    ),
    (
        "parameters|batch_size",
        {"distribution": "normal", "mu": 99, "sigma": 9},
        "use q_normal with q: 1",
    ),
    ("parameters|batch_size", {"distribution": "q_normal", "mu": 99, "sigma": 9, "q": 8}, None),
    ("parameters|max_lr", {"distribution": "beta", "a": 1e308, "b": 1}, "must not be above 1e+06"),
    ("parameters|max_lr", {"distribution": ["uniform"]}, "unknown distribution"),
    ("parameters|max_lr", {"distribution": "normal", "min": 1}, "normal has no min"),
    ("parameters|max_lr", {"value": 0.1, "min": 0.1, "max": 0.2}, "constant has no min"),
    ("parameters|max_lr", {"min": 10**400, "max": 0.2}, "must be a number"),
    (
        "parameters|max_lr",
        {"distribution": "q_uniform", "min": 0.1, "max": 1.0, "q": 1},
        "max_lr=0",
    ),
    ("parameters|max_lr", {"distribution": "q_uniform", "min": 0.1, "max": 1.0}, "needs q"),
    (
        "parameters|max_lr",
        {"distribution": "q_uniform", "min": 0.1, "max": 1.0, "q": 1e-320},
        "max_lr=inf must be a number",
    ),
    ("parameters|batch_size", {"distribution": "q_uniform", "min": 8, "max": 9, "q": 0.5}, "whole"),
    ("parameters|max_lr", {"distribution": "log_normal", "mu": 0.1, "sigma": -1}, "sigma=-1"),
    ("metric|impute", "lowest", "latest, best or worst"),
    ("metric|impute_while_running", "false", None),
    ("metric|impute_while_running", False, "latest, best, worst or false"),
    ("metric|target", "0.9", "must be a number"),
    ("early_terminate|3", 4, "unknown '3'"),
    ("early_terminate", {"type": "hyperband", "max_iter": 27, "s": 10**9}, None),
    ("program", "x" * 5000, "no such file"),
    ("project", "team/tinysweep", "project='team/tinysweep' must have none of /"),
    ("run_cap", 0, "run_cap=0"),
    ("run_cap", 2.5, "run_cap=2.5"),
    ("command", "python train.py", "must be a list"),
    ("command", ["${env}", "${progam}"], "did you mean 'program'"),
    ("command", ["${program}", "${envvar:data}"], "unknown ${envvar:data}"),
    ("command", ["${program}", "--data_dir", "${envvar:DATA}", "--seed=${envvar:SEED}"], None),
    ("command", ["${program}", "--config=${envvar:RECIPE}"], None),
    ("command", ["${program}", "--config=nowhere.yaml"], "command: --config=nowhere.yaml: No such"),
    ("command", ["${program}", "--batch_size=0"], "command: batch_size=0 is out of range"),
    ("command", ["${program}", "--batch_size"], "expected one argument"),
    ("command", ["${program}", "--max_lrr=0.1"], "did you mean '--max_lr'"),
    ("command", ["torchrun", "--standalone", "${program}", "${args}", "${envvar:MORE}"], None),
    ("early_terminate|type", "asha", "type: hyperband"),
    ("early_terminate|min_itr", 3, "'min_iter'"),
    ("early_terminate|min_iter", 0, "min_iter=0"),
    ("early_terminate|eta", 1, "eta=1"),
    ("early_terminate|strict", "yes", "strict='yes'"),
    ("early_terminate", {"type": "hyperband"}, "needs min_iter"),
    ("early_terminate", {"type": "hyperband", "min_iter": 3, "max_iter": 9}, "max_iter and s"),
    ("early_terminate", {"type": "hyperband", "max_iter": 2, "s": 1}, "must not be below eta"),
]


@pytest.mark.parametrize(("path", "value", "words"), ERRORS)
def test_errors(path, value, words):
    found = check(changed(path, value), REPO)
    if words is None:
        assert found.errors == []
    else:
        (error,) = found.errors
        assert words in error


WARNINGS = [
    ("metric|impute", NOWHERE, "impute"),
    ("metric|goal", "minimize", "the worst run will win"),
    ("early_terminate|min_iter", 20, "nothing will be stopped"),
    ("parameters|epochs", {"value": 3}, "first band is at epoch 3, and no run has more than 3"),
    ("command", ["echo", "hello"], "no ${program}"),
    ("command", ["${program}", "${args_json}"], "train.py cannot read ${args_json}"),
    ("command", ["${program}", "--epochs=0002", "${args}"], None),
    (
        "parameters|max_lr",
        {"distribution": "log_uniform", "min": -4.6, "max": 0.0},
        "draws are 0.01005 to 1; log_uniform_values",
    ),
]


@pytest.mark.parametrize(("path", "value", "words"), WARNINGS)
def test_warnings(path, value, words):
    found = check(changed(path, value), REPO)
    assert found.errors == []
    if words is None:
        assert found.warnings == []
    else:
        (warning,) = found.warnings
        assert words in warning


@pytest.mark.parametrize(
    ("name", "spec", "percent"),
    [
        # beyond 2 sigma; and of 0, 0.5 and 1 the last
        ("aug_strength", {"distribution": "normal", "mu": 1.0, "sigma": 0.5}, 4.6),
        ("label_smoothing", {"distribution": "q_beta", "a": 1, "b": 1, "q": 0.5}, 25),
        ("max_lr", {"distribution": "q_log_normal", "mu": -2.0, "sigma": 1.0, "q": 0.05}, 4.6),
    ],
)
def test_how_many_draws_leave_the_range(name, spec, percent):
    found = check(changed(f"parameters|{name}", spec), REPO)
    assert found.errors == []
    (warning,) = found.warnings
    told = re.match(rf"{name}: about (\d+)% of the draws of {spec['distribution']} fail", warning)
    assert 0.7 * percent < int(told[1]) < 1.4 * percent
    assert f"as: {name}=" in warning


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("max_lr", {"distribution": "log_normal", "mu": -3.0, "sigma": 1.0}),
        ("aug_strength", {"distribution": "normal", "mu": 1.0, "sigma": 0.2}),  # 5 sigma to 0 and 2
        ("val_fraction", {"distribution": "beta", "a": 2, "b": 20}),
        ("batch_size", {"distribution": "q_normal", "mu": 96, "sigma": 8, "q": 16}),
    ],
)
def test_no_warning_where_the_tail_stays_in_range(name, spec):
    found = check(changed(f"parameters|{name}", spec), REPO)
    assert found.errors == found.warnings == []


def searched(**parameters) -> dict:
    """sweep.yaml over other parameters."""
    return changed("parameters", parameters)


CYCLIC = {"value": "cyclic"}
LOG = {"distribution": "log_uniform_values"}
TOGETHER = [  # parameters that are right alone, and what check says to all of them
    (
        {"schedule": CYCLIC, "base_lr": {"value": 0.02}, "max_lr": {**LOG, "min": 0.01, "max": 1}},
        "together: schedule=cyclic, base_lr=0.02, max_lr=0.01: base_lr=0.02 must not be above",
    ),
    (
        {"schedule": CYCLIC, "base_lr": {"value": 0.02}, "max_lr": {**LOG, "min": 0.03, "max": 1}},
        None,
    ),
    (  # the highest of one with the lowest of the other; the schedule is one of two
        {
            "seed": {"values": [1, 2]},
            "schedule": {"values": ["onecycle", "cyclic"]},
            "base_lr": {**LOG, "min": 0.001, "max": 0.02},
            "max_lr": {**LOG, "min": 0.01, "max": 1},
        },
        "together: schedule=cyclic, base_lr=0.02, max_lr=0.01: ",
    ),
    (  # against a default; the median stands for what has no bounds
        {"schedule": CYCLIC, "max_lr": {"distribution": "log_normal", "mu": -12, "sigma": 0.1}},
        "together: schedule=cyclic, max_lr=",
    ),
    (
        {"image_size": {"values": [32, 48]}, "resolution_schedule": {"value": "32:0.5"}},
        "together: image_size=32, resolution_schedule=32:0.5: resolution_schedule: 32 px is not",
    ),
    (
        {"image_size": {"values": [40, 48]}, "resolution_schedule": {"value": "32:0.5"}},
        None,
    ),
    (  # 2**12 combinations: not all are tried, and an eighth of them are wrong
        {
            "schedule": {"values": ["cyclic", "cyclic", "onecycle", "step"]},
            **{name: {"min": 0.0, "max": 0.5} for name in ("cutmix", "mixup", "l1", "ema")},
            **{name: {"min": 0, "max": 9} for name in ("seed", "split_seed", "crop_padding")},
            "momentum": {"min": 0.0, "max": 0.9},
            "base_lr": {"min": 0.0, "max": 0.1},
            "max_lr": {"min": 0.01, "max": 1.0},
        },
        "together: schedule=cyclic, base_lr=0.1, max_lr=0.01: ",
    ),
]


@pytest.mark.parametrize(("parameters", "words"), TOGETHER)
def test_what_config_refuses_only_together(parameters, words):
    errors = check(searched(**parameters), REPO).errors
    if words is None:
        assert errors == []
    else:
        (error,) = errors
        assert error.startswith(words)


def test_the_commands_own_words_count(tmp_path):
    """Flags over a recipe, and parameters over both."""
    sweep = changed("parameters|max_lr", {"min": 0.01, "max": 1.0})
    (tmp_path / "r.yaml").write_text("schedule: cyclic\nbase_lr: 0.5\nmax_lr: 1.0\nepochs: 7\n")
    recipe = f"--config={tmp_path / 'r.yaml'}"
    sweep["command"] = ["${program}", recipe, "${args}"]
    (error,) = check(sweep, REPO).errors
    assert error.startswith("together: max_lr=0.01, schedule=cyclic, base_lr=0.5: ")
    sweep["command"] = ["${program}", recipe, "--base_lr=1.0e-3", "${args}"]
    assert check(sweep, REPO).errors == []
    sweep["parameters"]["base_lr"] = {"value": 0.6}
    assert "base_lr=0.6" in check(sweep, REPO).errors[0]
    assert most_epochs({"command": ["${program}", recipe]}) == 7
    assert most_epochs({"command": ["${program}", recipe, "--epochs", "9"]}) == 9


@pytest.mark.parametrize("dataset", [{"value": "cifar10"}, {"values": ["shapes", "cifar10"]}])
def test_cifar10_has_no_boxes_to_score(dataset):
    sweep = changed("parameters|dataset", dataset)
    assert check(sweep, REPO).errors == []
    sweep["metric"]["name"] = "val/cam_energy_lift"
    (error,) = check(sweep, REPO).errors
    assert error == "metric 'val/cam_energy_lift' needs boxes, and dataset=cifar10 has none"
    sweep["parameters"]["dataset"] = {"value": "shapes"}
    assert check(sweep, REPO).errors == []
    del sweep["parameters"]["dataset"]
    sweep["command"] = ["${program}", "--dataset=cifar10", "${args}"]
    assert "needs boxes" in check(sweep, REPO).errors[0]


def test_a_goal_that_is_none_is_not_called_the_wrong_one():
    metric = {"name": "val/loss", "goal": "min", "impute": "latest"}
    assert check(changed("metric", metric), REPO).warnings == []


def test_a_scheduler_of_w_and_bs_own():
    sweep = changed("early_terminate", NOWHERE)
    sweep["scheduler"] = {"engine": "wandb"}
    assert check(sweep, REPO).errors == []
    sweep["scheduler"] = {"engine": "optuna"}
    (error,) = check(sweep, REPO).errors
    assert "scheduler needs `engine: wandb`" in error


def test_a_grid_has_an_end():
    sweep = changed("method", "grid")
    errors = check(sweep, REPO).errors
    assert [error.split(":")[0] for error in errors] == ["max_lr", "aug_strength"]


def test_what_w_and_b_takes_a_parameter_for():
    assert distribution({"min": 0, "max": 1}) == "int_uniform"
    assert distribution({"min": 0.0, "max": 1}) == "uniform"
    assert distribution({"value": 1}) == "constant"
    assert distribution({"values": [1]}) == "categorical"
    assert distribution({"values": [1], "probabilities": [1]}) == "categorical_w_probabilities"
    assert most_epochs({"parameters": {"epochs": {"values": [3, 7]}}}) == 7
    assert most_epochs({"parameters": {"epochs": {"min": 3, "max": 8}}}) == 8
    assert most_epochs({}) == 50
    assert most_epochs({"command": ["python", "--epochs=3", "${args}"]}) == 3


def test_the_command(tmp_path):
    good = run("sweep.py", "check", REPO / "sweep.yaml", cwd=REPO)
    assert good.returncode == 0
    assert "after 3, 9 of 20 epochs" in good.stdout
    assert good.stderr == ""
    cases = [("a: [", "line 1: no YAML"), ("- a", "`key: value`"), ("a: 1", "unknown key")]
    cases += [("a: 2001-13-45", "no YAML"), ("[" * 3000, "no YAML")]
    for text, words in cases:
        (tmp_path / "s.yaml").write_text(text)
        bad = run("sweep.py", "check", tmp_path / "s.yaml")
        assert bad.returncode == 2
        assert words in bad.stderr
        assert "Traceback" not in bad.stderr
    assert_mistake(run("sweep.py", "check", "nowhere.yaml"), "nowhere.yaml", "No such file")


@pytest.mark.parametrize("name", ["sweep.yaml", "sweep_cpu.yaml", "demo.yaml"])
def test_what_is_shipped_has_no_warning(name):
    assert sweep_file.check(yaml.safe_load((REPO / name).read_text()), REPO).warnings == []


def test_a_recipe_whose_place_the_environment_tells_says_where_the_runs_go(tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text("output_dir: elsewhere\n")
    command = ["${program}", "--config=${envvar:TINYSWEEP_HOME}/r.yaml"]
    monkeypatch.setenv("TINYSWEEP_HOME", str(tmp_path))
    assert output_dir_of(command) == {"output_dir": "elsewhere"}
