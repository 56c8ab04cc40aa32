"""The next trial of a sweep: Optuna behind W&B's sweep.yaml.

`ask` draws the parameters of a study's next trial: a Gaussian process for bayes, random, or grid.
It keeps nothing from one call to the next: a study that was killed, or that several drivers share,
goes on as one that was not.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from space import Space

STARTUP = 4  # trials of a bayes search that are spread evenly before the Gaussian process begins
FLOOR = 2  # times as far below the median score as the best is above it: worse counts as this
ASKS = 2  # of the Gaussian process, for a draw that is not like an earlier one
POINTS = 100  # of the even spread that are tried then
# User attributes that a driver may give a trial that it tells as failed.
IMPUTED = "imputed"  # the value to learn it with (`impute`); None: nothing is learnt from it
FORGOTTEN = "forgotten"  # true: no run of it ever began, so that its point of a grid is still due


def ask(study: optuna.Study, space: Space, method: str, seed: int) -> Trial | None:
    """The study's next trial; None where a grid is exhausted.

    Let one driver at a time call this: a trial is drawn with regard to those that run. The draw
    depends on the seed, the number of trials so far and what is known of them, on nothing else.
    """
    every = study.get_trials(deepcopy=False)
    number = len(every)
    trials = [  # one whose driver was killed while it made it has not all parameters
        trial
        for trial in every
        if space.distributions.keys() <= trial.params.keys() and not trial.user_attrs.get(FORGOTTEN)
    ]
    if method == "grid":
        drawn = _next_point(space, trials)
        if drawn is None:
            return None
    elif method == "bayes":
        drawn = _bayes(space, trials, study.direction, seed, number)
    else:
        drawn = _draw(optuna.samplers.RandomSampler(seed=_seed(seed, number)), space)
    study.sampler = _Given(space.snapped(drawn))
    return study.ask(space.distributions)


def _next_point(space: Space, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """The draw of the grid's first point that no trial has."""

    def key(drawn: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple((type(drawn[name]), drawn[name]) for name in space.distributions)

    taken = {key(trial.params) for trial in trials}
    for number in range(min(len(taken) + 1, space.grid_size)):
        drawn = space.snapped(space.grid_point(number))
        if key(drawn) not in taken:
            return drawn
    return None


def _seed(seed: int, number: int) -> int:
    """Another one for each trial: a sampler made anew would draw the same again."""
    return int(np.random.SeedSequence((seed % 2**32, number)).generate_state(1)[0])


def _bayes(
    space: Space, trials: Sequence[FrozenTrial], goal: StudyDirection, seed: int, number: int
) -> dict[str, Any]:
    """What the Gaussian process suggests, unless that was tried or is being tried.

    It takes trials for noisy and would try a corner many times over; but the same parameters give
    the same run. Then, and in the beginning, it is the next point of an even spread.
    """

    def is_new(drawn: Mapping[str, Any]) -> bool:
        return not any(space.alike(drawn, trial.params) for trial in trials)

    drawn = None
    if sum(trial.state == TrialState.COMPLETE for trial in trials) >= STARTUP:
        sampler = optuna.samplers.GPSampler(
            seed=_seed(seed, number), n_startup_trials=0, warn_independent_sampling=False
        )
        with _one_thread():
            drawn = _draw(sampler, space, _known(trials, goal), is_new)
        if is_new(drawn):
            return drawn
    for later in range(number, number + POINTS):
        point = _spread(space, seed, later)
        if is_new(point):
            return point
    return drawn or point  # a small space, and all of it was tried


def _spread(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The number-th of a sequence of points that fills the space evenly, however long it gets.

    Multiples of the powers of a root that generalises the golden ratio (Roberts' R sequence), from
    another start for each seed. As good as Sobol's here, and nothing has to be imported for it.
    """
    size, root = len(space.distributions), 1.5
    for _ in range(64):  # to the root of x^(size + 1) = x + 1
        root = (1 + root) ** (1 / (size + 1))
    start = np.random.default_rng(seed % 2**32).random(size)
    return space.at(((start + number * root ** -np.arange(1.0, size + 1)) % 1).tolist())


def _known(trials: Sequence[FrozenTrial], goal: StudyDirection) -> list[FrozenTrial]:
    """What the Gaussian process learns from, the higher the better, and the trials that run.

    A failed trial counts with the value that its driver left with it, else as the worst one:
    were it left out, the search would go there again.
    """
    sign = 1 if goal == StudyDirection.MAXIMIZE else -1
    worst = min(sign * trial.value for trial in trials if trial.state == TrialState.COMPLETE)
    scores = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            scores.append((trial, sign * trial.value))
        elif trial.state == TrialState.FAIL:
            value = trial.user_attrs.get(IMPUTED, sign * worst)
            if value is not None:
                scores.append((trial, sign * value if math.isfinite(value) else worst))
    shaped = _shaped(np.array([score for _, score in scores]))
    learnt = [
        optuna.trial.create_trial(
            value=value, params=trial.params, distributions=trial.distributions
        )
        for (trial, _), value in zip(scores, shaped.tolist(), strict=True)
    ]
    return learnt + [trial for trial in trials if trial.state == TrialState.RUNNING]


def _shaped(scores: np.ndarray) -> np.ndarray:
    """Far below the middle counts as the floor: what diverged would drown the good ones' order."""
    middle = np.median(scores)
    return np.maximum(scores, middle - FLOOR * (scores.max() - middle))


def _draw(
    sampler: optuna.samplers.BaseSampler,
    space: Space,
    known: Sequence[FrozenTrial] = (),
    is_new: Callable[[Mapping[str, Any]], bool] = lambda drawn: True,
) -> dict[str, Any]:
    """What a sampler suggests after these trials, in a study that is thrown away.

    What is not new it has to take for a trial that runs, and is asked again.
    """
    with _quiet():
        study = optuna.create_study(sampler=sampler, direction="maximize")
        study.add_trials(known)
        for _ in range(ASKS):
            drawn = study.ask(space.distributions).params
            if is_new(drawn):
                break
        return drawn


@contextmanager
def _one_thread() -> Iterator[None]:
    """Trials train on all cores: threads that wait for one another would take 3 times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of studies that are thrown away."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # else: that greenlet is missing
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Given(optuna.samplers.BaseSampler):
    """Gives what has been drawn already."""

    def __init__(self, drawn: Mapping[str, Any]) -> None:
        self._drawn = dict(drawn)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, *_: BaseDistribution
    ) -> Any:
        return self._drawn[param_name]
