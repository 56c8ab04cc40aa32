"""`python sweep.py check`: what W&B would reject or silently misread."""

import copy

import pytest
import yaml

import sweep_file
from conftest import REPO, assert_mistake, run
from sweep_file import bands, check, distribution, most_epochs


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
    ("parameters|max_lr", {"parameters": {"a": {"value": 1}}}, "nested"),
    ("parameters|max_lr", {"distribution": "log_normal", "mu": -3.0, "sigma": 1.0}, None),
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
    ("parameters|batch_size", {"distribution": "q_uniform", "min": 8, "max": 9, "q": 0.5}, "whole"),
    ("parameters|max_lr", {"distribution": "log_normal", "mu": 0.1, "sigma": -1}, "sigma=-1"),
    ("metric|impute", "lowest", "latest, best or worst"),
    ("early_terminate|3", 4, "unknown '3'"),
    ("early_terminate", {"type": "hyperband", "max_iter": 27, "s": 10**9}, None),
    ("program", "x" * 5000, "no such file"),
    ("run_cap", 0, "run_cap=0"),
    ("run_cap", 2.5, "run_cap=2.5"),
    ("command", "python train.py", "must be a list"),
    ("command", ["${env}", "${progam}"], "did you mean 'program'"),
    ("early_terminate|type", "asha", "type: hyperband"),
    ("early_terminate|min_itr", 3, "'min_iter'"),
    ("early_terminate|min_iter", 0, "min_iter=0"),
    ("early_terminate|eta", 1, "eta=1"),
    ("early_terminate|strict", "yes", "strict='yes'"),
    ("early_terminate", {"type": "hyperband"}, "needs min_iter"),
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
]


@pytest.mark.parametrize(("path", "value", "words"), WARNINGS)
def test_warnings(path, value, words):
    found = check(changed(path, value), REPO)
    assert found.errors == []
    (warning,) = found.warnings
    assert words in warning


def test_a_grid_has_an_end():
    sweep = changed("method", "grid")
    errors = check(sweep, REPO).errors
    assert [error.split(":")[0] for error in errors] == ["max_lr", "aug_strength"]


def test_bands():
    assert bands({"min_iter": 3, "eta": 3}, 20) == [3, 9]
    assert bands({"min_iter": 5, "eta": 3}, 50) == [5, 15, 45]
    assert bands({"min_iter": 5}, 4) == []
    assert bands({"max_iter": 27, "s": 2, "eta": 3}, 27) == [3, 9]  # 27/9 and 27/3
    assert bands({"min_iter": 7}) == [7]


def test_what_w_and_b_takes_a_parameter_for():
    assert distribution({"min": 0, "max": 1}) == "int_uniform"
    assert distribution({"min": 0.0, "max": 1}) == "uniform"
    assert distribution({"value": 1}) == "constant"
    assert distribution({"values": [1]}) == "categorical"
    assert distribution({"values": [1], "probabilities": [1]}) == "categorical_w_probabilities"
    assert most_epochs({"parameters": {"epochs": {"values": [3, 7]}}}) == 7
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
    assert sweep_file.check(GOOD, REPO).warnings == []


def test_each_agent_has_its_own_device_or_its_share_of_the_threads(monkeypatch):
    import agents

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pinned = {"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}
    assert [env for _, env in agents.places(None)] == [*pinned]
    assert [env for _, env in agents.places(3)] == [*pinned, pinned[0]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(agents, "cores", lambda: 8)
    assert [env for _, env in agents.places(3)] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [env for _, env in agents.places(None)] == [{"OMP_NUM_THREADS": "8"}]
