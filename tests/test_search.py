"""The search space and the next trial: every distribution of W&B, grids, continued studies."""

import math
from collections import Counter

import numpy as np
import optuna
import pytest
from scipy import stats

import search
from space import Space
from sweep_parameters import DISTRIBUTIONS

DRAWS = 500

pytestmark = pytest.mark.filterwarnings("error")  # a user must never see one
LR = {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}
AUG = {"min": 0.0, "max": 2.0}
TWO = {"max_lr": LR, "aug_strength": AUG}


def of(distribution, **numbers):
    return {"distribution": distribution, **numbers}


# name: (the parameter, its distribution function's inverse before rounding, type, lowest, highest)
LOG = stats.loguniform(0.01, 1)
NUMBERS = {
    "uniform": (AUG, stats.uniform(0, 2), float, 0, 2),
    "uniform by name": (of("uniform", min=1, max=3), stats.uniform(1, 2), float, 1, 3),
    "int_uniform": ({"min": 3, "max": 6}, stats.randint(3, 7), int, 3, 6),
    "log_uniform_values": (LR, LOG, float, 0.01, 1),
    "log_uniform": (
        of("log_uniform", min=math.log(0.01), max=0.0), LOG, float, 0.01, 1,
    ),
    "inv_log_uniform_values": (of("inv_log_uniform_values", min=0.01, max=1), LOG, float, 0.01, 1),
    "inv_log_uniform": (
        of("inv_log_uniform", min=0.0, max=math.log(100)), LOG, float, 0.01, 1,
    ),
    "q_uniform": (of("q_uniform", min=0.1, max=0.9, q=0.2), stats.uniform(0.1, 0.8), float, 0, 0.8),
    "q_uniform whole": (of("q_uniform", min=1, max=30, q=5), stats.uniform(1, 29), int, 0, 30),
    "q_log_uniform": (
        of("q_log_uniform", min=math.log(16), max=math.log(512), q=16),
        stats.loguniform(16, 512), int, 16, 512,
    ),
    "q_log_uniform_values": (
        of("q_log_uniform_values", min=0.01, max=1.0, q=0.05), LOG, float, 0, 1,
    ),
    "normal": (of("normal", mu=2, sigma=0.5), stats.norm(2, 0.5), float, 0.4, 3.6),
    "q_normal": (of("q_normal", mu=10, sigma=3, q=2), stats.norm(10, 3), int, 0, 20),
    "log_normal": (
        of("log_normal", mu=-2, sigma=1), stats.lognorm(1, 0, math.exp(-2)), float, 0, 3,
    ),
    "q_log_normal": (
        of("q_log_normal", mu=1, sigma=0.5, q=0.5), stats.lognorm(0.5, 0, math.e), float, 0.5, 13,
    ),
    "beta": (of("beta", a=2, b=5), stats.beta(2, 5), float, 0, 1),
    "q_beta": (of("q_beta", a=2, b=5, q=0.1), stats.beta(2, 5), float, 0, 1),
}  # fmt: skip
CHOICES = {
    "categorical": ({"values": ["sgd", "adam", True, 3, 0.5]}, [0.2] * 5),
    "categorical_w_probabilities": (
        {"values": ["a", "b", "c", "d"], "probabilities": [0.5, 0.0, 0.2, 0.3]},
        [0.5, 0.0, 0.2, 0.3],
    ),
    "categorical twice the same": ({"values": [1, 1, 2]}, [2 / 3, 1 / 3]),
}
CONSTANTS = {"constant": {"value": 20}, "categorical of one": {"values": ["x"]}}
ALL = {
    **{name: row[0] for name, row in (NUMBERS | CHOICES).items()},
    **CONSTANTS,
}


def study(**options):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", **options)


@pytest.fixture(scope="module")
def drawn():
    """What 500 runs of a random search get, every distribution at once."""
    space, one = Space(ALL), study()
    return [space.values(search.ask(one, space, "random", 0).params) for _ in range(DRAWS)]


def test_every_distribution_is_here():
    assert {name.split(" ")[0] for name in ALL} == set(DISTRIBUTIONS)


def test_values_are_complete_and_in_the_order_of_the_file(drawn):
    assert all(list(values) == list(ALL) for values in drawn)
    turned = Space(dict(reversed(ALL.items())))
    point = search.ask(study(), turned, "random", 0).params
    assert list(turned.values(point)) == list(reversed(ALL))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(drawn, name):
    spec, law, kind, lowest, highest = NUMBERS[name]
    values = [one[name] for one in drawn]
    assert {type(value) for value in values} == {kind}
    assert lowest <= min(values) and max(values) <= highest
    q = spec.get("q", 1 if kind is int else 0)
    if q:
        steps = [value / q for value in values]
        assert steps == pytest.approx([round(step) for step in steps], abs=1e-9)
        assert max(len(str(value)) for value in values) < 6  # 0.3, not 0.30000000000000004
    else:
        assert len(set(values)) == DRAWS
    # Kolmogorov's distance of 500 draws; rounded ones by the middle between two multiples.
    edges = sorted(set(values))
    edges = [edge + q / 2 for edge in edges] if q else edges
    shares = np.searchsorted(np.sort(values), edges, side="right") / DRAWS
    assert np.abs(shares - law.cdf(edges)).max() < 0.08


@pytest.mark.parametrize("name", CHOICES)
def test_choices_have_their_probabilities(drawn, name):
    spec, chances = CHOICES[name]
    different = list(dict.fromkeys(spec["values"]))
    counts = Counter(one[name] for one in drawn)
    assert {(type(value), value) for value in counts} <= {(type(v), v) for v in spec["values"]}
    for value, chance in zip(different, chances, strict=True):
        assert counts[value] / DRAWS == pytest.approx(chance, abs=0.06 if chance else 0)


def test_true_is_not_1():
    space = Space({"a": {"values": [1, True]}})
    assert {type(space.values(space.grid_point(i))["a"]) for i in range(2)} == {int, bool}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_not_searched(drawn, name):
    assert {one[name] for one in drawn} == {20 if name == "constant" else "x"}
    assert not Space({name: CONSTANTS[name]}).distributions


def test_the_study_reads_as_the_runs_do():
    """Optuna's own distribution where it has one; a rounded draw is kept rounded."""
    whole, log = Space(ALL).distributions["int_uniform"], Space(TWO).distributions["max_lr"]
    assert (whole, log) == (
        optuna.distributions.IntDistribution(3, 6),
        optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
    )
    names = ["uniform", "categorical", "q_uniform whole", "q_log_uniform"]
    space, one = Space({name: ALL[name] for name in names}), study()
    for _ in range(50):
        kept = search.ask(one, space, "random", 1).params
        values = space.values(kept)
        beyond = values["q_uniform whole"] == 0  # rounded to below the least, which is 1
        assert kept == {**values, "q_uniform whole": 1 if beyond else values["q_uniform whole"]}


@pytest.mark.parametrize(
    ("name", "extreme"),
    {"normal": 3.6, "log_normal": 3.0, "q_normal": 20, "beta": 0.9}.items(),
)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_what_has_no_bounds_are_finite(name, extreme, end):
    """The Gaussian process goes to the corners."""
    space = Space({name: ALL[name]})
    value = space.values({name: getattr(space.distributions[name], end)})[name]
    assert math.isfinite(value) and abs(value) <= extreme


# --------------------------------------------------------------------------------------- grid

GRID = {
    "optimizer": {"values": ["sgd", "adam"]},
    "epochs": {"value": 5},
    "aug_strength": of("q_uniform", min=0.0, max=1.0, q=0.5),
    "batch_size": {"min": 1, "max": 2},
}


def whole_grid(parameters, one=None):
    space, one, seen = Space(parameters), one or study(), []
    while (trial := search.ask(one, space, "grid", 0)) is not None:
        seen.append(tuple(space.values(trial.params).values()))
    return seen


def test_grid_is_complete_and_the_last_parameter_turns_fastest():
    assert Space(GRID).grid_size == 12
    expected = [
        (optimizer, 5, strength, size)
        for optimizer in ("sgd", "adam")
        for strength in (0.0, 0.5, 1.0)
        for size in (1, 2)
    ]
    assert whole_grid(GRID) == expected


def test_an_exhausted_grid_makes_no_trial():
    one = study()
    assert len(whole_grid(GRID, one)) == len(one.trials) == 12
    assert search.ask(one, Space(GRID), "grid", 0) is None
    assert len(one.trials) == 12


def test_a_point_of_a_grid_that_never_began_is_given_out_again():
    one, space = study(), Space(GRID)
    trials = [search.ask(one, space, "grid", 0) for _ in range(3)]
    trials[1].set_user_attr(search.FORGOTTEN, True)
    for trial in trials[1:]:
        one.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert search.ask(one, space, "grid", 0).params == trials[1].params
    assert search.ask(one, space, "grid", 0).params == space.grid_point(3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"value": 3}, [3]),
        ({"values": [3]}, [3]),
        ({"values": [2, 1, 2]}, [2, 1]),
        (of("q_uniform", min=1, max=9, q=4), [0, 4, 8]),
        (of("q_uniform", min=0.1, max=0.4, q=0.1), [0.1, 0.2, 0.3, 0.4]),
        ({"min": -1, "max": 1}, [-1, 0, 1]),
    ],
)
def test_grid_of_one_parameter(spec, expected):
    assert whole_grid({"epochs": spec}) == [(value,) for value in expected]


def test_grid_without_an_end_and_one_that_is_long():
    assert Space(TWO).grid_size is None
    assert Space({**GRID, "a": ALL["categorical_w_probabilities"]}).grid_size is None
    space = Space({"seed": {"min": 0, "max": 10**9}, "a": {"values": [1, 2]}})
    assert space.grid_size == 2 * (10**9 + 1)
    assert space.values(space.grid_point(10**9 + 1)) == {"seed": 5 * 10**8, "a": 2}


# ---------------------------------------------------------------------------- the next trial


def score(values):
    return -(math.log10(values["max_lr"] / 0.2) ** 2) - (values["aug_strength"] - 1.5) ** 2 / 4


def some(one, count, method="bayes", seed=0, space=None):
    """Asks and tells, one after the other; the values of all."""
    space, seen = space or Space(TWO), []
    for _ in range(count):
        trial = search.ask(one, space, method, seed)
        seen.append(space.values(trial.params))
        one.tell(trial, score(seen[-1]))
    return seen


def apart(first, second):
    """Distance in the unit square."""
    return math.hypot(
        math.log10(first["max_lr"] / second["max_lr"]) / 2,
        (first["aug_strength"] - second["aug_strength"]) / 2,
    )


def closest(values):
    return min(apart(a, b) for i, a in enumerate(values) for b in values[:i])


def test_bayes_finds_the_optimum():
    assert max(map(score, some(study(), 14))) > -0.01


def test_bayes_minimizes_too():
    one, space, best = optuna.create_study(direction="minimize"), Space(TWO), []
    for _ in range(14):
        trial = search.ask(one, space, "bayes", 0)
        best.append(-score(space.values(trial.params)))
        one.tell(trial, best[-1])
    assert min(best) < 0.01


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_the_same_seed_draws_the_same_and_another_does_not(method):
    first, again, other = (some(study(), 6, method, seed) for seed in (3, 3, 4))
    assert first == again
    assert not any(values in first for values in other)


def test_the_start_is_spread_evenly():
    """Of four points each half of each parameter has some, whatever the seed."""
    for seed in range(20):
        values = some(study(), search.STARTUP, seed=seed)
        for high in ([v["max_lr"] > 0.1 for v in values], [v["aug_strength"] > 1 for v in values]):
            assert 1 <= sum(high) <= 3
        assert closest(values) > 0.15


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_a_study_that_was_killed_goes_on_as_one_that_was_not(method, tmp_path):
    """A new process, here a new study object on the same file, before every trial."""

    def opened():
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        storage = optuna.storages.JournalStorage(backend)
        return study(study_name="one", storage=storage, load_if_exists=True)

    pieces = [values for _ in range(8) for values in some(opened(), 1, method)]
    assert pieces == some(study(), 8, method)
    assert closest(pieces) > 0


def test_two_drivers_on_one_study(tmp_path):
    """Each has opened the file for itself, and the trials of both run."""
    drivers = []
    for _ in range(2):
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        storage = optuna.storages.JournalStorage(backend)
        drivers.append(study(study_name="one", storage=storage, load_if_exists=True))
    some(drivers[0], 5)
    trials = [search.ask(drivers[i % 2], Space(TWO), "bayes", 0) for i in range(4)]
    assert [trial.number for trial in trials] == [5, 6, 7, 8]
    assert closest([trial.params for trial in trials]) > 0.02


@pytest.mark.parametrize("known", [0, 2, search.STARTUP, 10])
def test_trials_that_run_get_different_points(known):
    one, space = study(), Space(TWO)
    some(one, known)
    running = [space.values(search.ask(one, space, "bayes", 0).params) for _ in range(6)]
    assert closest(running) > 0.02


def corner(values):
    return math.log10(values["max_lr"]) / 20 + values["aug_strength"] / 50


def test_what_was_tried_is_not_tried_again():
    """The optimum in a corner: Optuna alone suggests exactly the corner, over and over."""
    one, space, seen = study(), Space(TWO), []
    noise = np.random.default_rng(1).normal(0, 0.004, 14).tolist()
    for error in noise:
        trial = search.ask(one, space, "bayes", 1)
        seen.append(space.values(trial.params))
        one.tell(trial, corner(seen[-1]) + error)
    assert max(map(corner, seen)) == pytest.approx(0.04)
    assert closest(seen) > 0.009


def test_all_of_a_small_space_is_tried_before_anything_twice():
    space, one, seen = (
        Space({"optimizer": {"values": ["a", "b"]}, "epochs": {"min": 1, "max": 4}}),
        study(),
        [],
    )
    for number in range(9):
        trial = search.ask(one, space, "bayes", 0)
        seen.append(tuple(space.values(trial.params).values()))
        one.tell(trial, number % 3)
    assert len(set(seen[:8])) == 8 and seen[8] in seen[:8]


@pytest.mark.parametrize(
    ("spec", "first", "second", "expected"),
    {
        "the same": (AUG, 1.0, 1.0, True),
        "about the same": (AUG, 1.0, 1.01, True),
        "not the same": (AUG, 1.0, 1.03, False),
        "by the logarithm": (LR, 0.01, 0.0103, True),
        "a step": ({"min": 1, "max": 20}, 3, 4, False),
        "rounded to the same": (ALL["q_normal"], 0.49, 0.52, True),
        "choices": ({"values": ["a", "b"]}, "a", "b", False),
        "choices by probability": (ALL["categorical_w_probabilities"], 0.499, 0.501, False),
        "one choice": (ALL["categorical_w_probabilities"], 0.1, 0.4, True),
    }.values(),
)
def test_alike(spec, first, second, expected):
    assert Space({"a": spec}).alike({"a": first}, {"a": second}) is expected


def test_a_failed_trial_is_not_tried_again_at_once():
    """Everything above a learning rate of 0.1 fails, and is best near there."""
    one, space, fails = study(), Space(TWO), []
    for _ in range(16):
        trial = search.ask(one, space, "bayes", 0)
        values = space.values(trial.params)
        fails.append(values["max_lr"] > 0.1)
        if fails[-1]:
            one.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            one.tell(trial, score(values))
    assert sum(fails) < 9
    assert closest([space.values(trial.params) for trial in one.trials]) > 0.001


def test_a_failed_trial_counts_with_the_value_left_with_it():
    one = study()
    some(one, 5)
    for value in (0.25, None):
        trial = search.ask(one, Space(TWO), "bayes", 0)
        trial.set_user_attr(search.IMPUTED, value)
        one.tell(trial, state=optuna.trial.TrialState.FAIL)
    search.ask(one, Space(TWO), "bayes", 0)
    values = [trial.value for trial in search._known(one.trials, one.direction)]
    assert values[5:] == [0.25, None]  # the one that failed and has a value; the one that runs


@pytest.mark.parametrize("method", ["bayes", "grid"])
@pytest.mark.parametrize("had", [0, 1])
def test_a_driver_that_was_killed_while_it_made_a_trial(method, had):
    """The trial has no parameters yet, or not all."""
    space, one = Space(GRID), study()
    first = search.ask(one, space, method, 0)
    one.ask(dict(list(space.distributions.items())[:had]))
    second = search.ask(one, space, method, 0)
    assert second.number == 2 and second.params != first.params
    assert method == "bayes" or second.params == space.grid_point(1)
    one.tell(1, state=optuna.trial.TrialState.FAIL)
    for value in range(search.STARTUP):
        one.tell(search.ask(one, space, method, 0), value)
    assert search.ask(one, space, method, 0).params.keys() == space.distributions.keys()


@pytest.mark.parametrize("method", ["bayes", "random", "grid"])
def test_constants_alone(method):
    space = Space({"epochs": {"value": 3}})
    trial = search.ask(study(), space, method, 0)
    assert (trial.params, space.values(trial.params)) == ({}, {"epochs": 3})


def test_ask_leaves_the_process_as_it_was():
    one = study()
    some(one, search.STARTUP + 1)  # from here on torch is imported
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    search.ask(one, Space(TWO), "bayes", 0)
    assert (torch.get_num_threads(), optuna.logging.get_verbosity()) == (2, optuna.logging.INFO)
    torch.set_num_threads(before)


def test_every_distribution_in_a_bayes_search():
    space, one = Space(ALL), study()
    for number in range(search.STARTUP + 2):
        trial = search.ask(one, space, "bayes", 0)
        assert list(space.values(trial.params)) == list(ALL)
        one.tell(trial, number / 10)
