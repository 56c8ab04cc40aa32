"""Learning rates: torch's own schedulers as the reference, the off-by-ones.

The published tables are in test_recipes.py.
"""

import io

import pytest
import torch
from torch.optim import lr_scheduler

from config import Config
from schedules import KINDS, create_schedule

# torch warns where a scheduler is stepped out of turn; a user must never see that.
pytestmark = pytest.mark.filterwarnings("error")


def make(kind, epochs=10, steps_per_epoch=10, algorithm=torch.optim.SGD, **numbers):
    """(optimizer, schedule) with two parameter groups, max_lr 0.1 unless told otherwise."""
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}]
    momentum = {"momentum": 0.9} if algorithm is torch.optim.SGD else {}
    optimizer = algorithm(groups, lr=123.0, **momentum)
    config = Config(schedule=kind, **{"max_lr": 0.1, **numbers})
    return optimizer, create_schedule(optimizer, config, epochs * steps_per_epoch, steps_per_epoch)


def lr(optimizer):
    rates = {group["lr"] for group in optimizer.param_groups}
    assert len(rates) == 1
    return rates.pop()


def momentum(optimizer):
    group = optimizer.param_groups[-1]
    return group["betas"][0] if "betas" in group else group["momentum"]


def trace(optimizer, schedule, steps):
    """(rate, momentum) with which each of the next batches trains."""
    seen = []
    for _ in range(steps):
        seen.append((lr(optimizer), momentum(optimizer)))
        schedule.step_batch()
    return seen


REFERENCES = {
    "onecycle cosine": ("onecycle", {}, lr_scheduler.OneCycleLR, {}),
    "onecycle line": (
        "onecycle",
        {"anneal": "linear", "warmup_fraction": 0.25, "div_factor": 5.0, "final_div_factor": 50.0},
        lr_scheduler.OneCycleLR,
        {"anneal_strategy": "linear", "pct_start": 0.25, "div_factor": 5, "final_div_factor": 50},
    ),
    "cyclic": (
        "cyclic",
        {"base_lr": 0.01, "cycle_epochs": 3.0},
        lr_scheduler.CyclicLR,
        {"base_lr": 0.01, "mode": "triangular2", "step_size_up": 10.5},
    ),
}


@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", REFERENCES)
def test_every_rate_and_momentum_is_torchs(name, algorithm):
    kind, ours, reference, theirs = REFERENCES[name]
    optimizer, schedule = make(kind, 8, 7, algorithm, cycle_momentum=True, **ours)
    twin, _ = make("constant", 8, 7, algorithm)
    if kind == "onecycle":
        theirs = {**theirs, "total_steps": 56}
    torchs = reference(twin, max_lr=0.1, **theirs)
    for step in range(56):
        expected = (lr(twin), momentum(twin))
        assert (step, lr(optimizer), momentum(optimizer)) == (step, *expected)
        twin.step()
        if step < 55:
            torchs.step()
        schedule.step_batch()
    assert (lr(optimizer), momentum(optimizer)) == (lr(twin), momentum(twin))


@pytest.mark.parametrize("kind", ["onecycle", "cyclic"])
@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.Adam])
def test_momentum_stays_what_the_user_asked_for(kind, algorithm):
    optimizer, schedule = make(kind, algorithm=algorithm)
    assert {m for _, m in trace(optimizer, schedule, 100)} == {0.9}


@pytest.mark.parametrize("kind", ["plateau", "cyclic"])
def test_a_factor_of_one_cuts_nothing(kind):
    _, schedule = make(kind, factor=1.0, patience=0)
    for _ in range(5):
        schedule.step_epoch(1.0, 64)
    assert schedule.scale == 1


LEAST = 0.1 / 25 / 1e4  # onecycle's last rate
ENDS = {  # epochs, steps an epoch, warm-up fraction: rate of the first batch, of the last
    "one step in all": (1, 1, 0.3, LEAST, LEAST),
    "one step in all, all warm-up": (1, 1, 1.0, LEAST, LEAST),
    "two steps": (2, 1, 0.6, 0.1 / 25, LEAST),
    "a warm-up of exactly one step": (1, 10, 0.1, 0.1, LEAST),
    "a warm-up of exactly one of three steps": (3, 1, 1 / 3, 0.1, LEAST),
    "no warm-up": (2, 1000, 0.0, 0.1, LEAST),
    "nothing but warm-up": (1, 10, 1.0, 0.1 / 25, 0.1),
    "one step an epoch": (50, 1, 0.3, 0.1 / 25, LEAST),
}


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("name", ENDS)
def test_onecycle_at_its_ends(name, anneal):
    epochs, steps, fraction, first, last = ENDS[name]
    optimizer, schedule = make("onecycle", epochs, steps, anneal=anneal, warmup_fraction=fraction)
    rates = [rate for rate, _ in trace(optimizer, schedule, epochs * steps)]
    assert (rates[0], rates[-1]) == pytest.approx((first, last), rel=1e-3)
    assert LEAST * (1 - 1e-9) <= min(rates) <= max(rates) <= 0.1
    for _ in range(3):  # a step too many neither raises nor moves: torch's line would fall below 0
        assert lr(optimizer) == rates[-1]
        schedule.step_batch()
    assert schedule.rate_at(10**9) == rates[-1]


def test_onecycle_without_annihilation_ends_where_it_began():
    optimizer, schedule = make("onecycle", 11, 5, warmup_fraction=4 / 11, final_div_factor=1.0)
    rates = [rate for rate, _ in trace(optimizer, schedule, 55)]
    assert (rates[0], rates[-1]) == pytest.approx((0.1 / 25, 0.1 / 25), rel=1e-12)
    assert rates.index(max(rates)) == 4 * 5 - 1  # the peak is the last batch of epoch 4
    assert max(rates) == pytest.approx(0.1)


def test_cyclic_halves_its_peak_every_cycle():
    _, schedule = make("cyclic", 8, 10, base_lr=0.02, cycle_epochs=2)
    turns = {0: 0.02, 5: 0.06, 10: 0.1, 20: 0.02, 30: 0.06, 40: 0.02, 50: 0.04}
    assert {step: schedule.rate_at(step) for step in turns} == pytest.approx(turns)


def test_cyclic_keeps_the_cut_of_the_plateau():
    optimizer, schedule = make("cyclic", base_lr=0.02, cycle_epochs=2, patience=0, factor=0.5)
    schedule.step_epoch(1.0, 64)
    assert lr(optimizer) == pytest.approx(0.02)
    schedule.step_epoch(1.0, 64)
    assert lr(optimizer) == pytest.approx(0.01)  # at once …
    for _ in range(10):
        schedule.step_batch()
    assert lr(optimizer) == pytest.approx(0.05)  # … and half of what the triangle says from then on


PLATEAUS = {  # patience, validation losses, cuts after each
    "better every time": (1, [5.0, 4.0, 3.0], [0, 0, 0]),
    "patience 0 cuts at the first epoch that is no better": (0, [5.0, 5.0, 4.0, 4.0], [0, 1, 1, 2]),
    "patience 2 waits for the third": (2, [5.0, 6.0, 6.0, 6.0], [0, 0, 0, 1]),
    "a better one starts the count again": (1, [5.0, 6.0, 4.0, 6.0, 6.0], [0, 0, 0, 0, 1]),
    "after a cut the count starts again": (1, [5.0, 6.0, 6.0, 6.0, 6.0], [0, 0, 1, 1, 2]),
    "the same loss is no better": (0, [5.0, 5.0], [0, 1]),
    "not a number is no better": (0, [5.0, float("nan")], [0, 1]),
}


@pytest.mark.parametrize("name", PLATEAUS)
def test_plateau(name):
    patience, losses, cuts = PLATEAUS[name]
    optimizer, schedule = make("plateau", patience=patience, factor=0.5)
    seen = []
    for loss in losses:
        schedule.step_batch()
        schedule.step_epoch(loss, 64)
        seen.append(lr(optimizer))
    assert seen == [0.1 * 0.5**n for n in cuts]


GROWING = {  # (loss, pixels) of each epoch: cuts after each
    "larger images may have a larger loss": ([(1, 32), (3, 64), (2, 64)], [0, 0, 0]),
    "and are counted anew": ([(1, 32), (2, 32), (3, 64), (4, 64), (5, 64)], [0, 0, 0, 0, 1]),
    "cuts remain": ([(1, 32), (1, 32), (1, 32), (1, 64)], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("kept", [False, True], ids=["", "resumed"])
@pytest.mark.parametrize("name", GROWING)
def test_a_plateau_is_of_images_of_one_size(name, kept):
    epochs, cuts = GROWING[name]
    optimizer, schedule = make("plateau", patience=1, factor=0.5)
    seen = []
    for loss, pixels in epochs:
        if kept:
            state = schedule.state_dict()
            optimizer, schedule = make("plateau", patience=1, factor=0.5)
            schedule.load_state_dict(state)
        schedule.step_epoch(loss, pixels)
        seen.append(lr(optimizer))
    assert seen == [0.1 * 0.5**n for n in cuts]


def test_step_falls_with_the_first_batch_of_an_epoch():
    optimizer, schedule = make("step", epochs=7, steps_per_epoch=4, step_epochs=3, gamma=0.5)
    rates = [rate for rate, _ in trace(optimizer, schedule, 28)]
    assert rates == [0.1] * 12 + [0.05] * 12 + [0.025] * 4


def test_step_is_torchs():
    optimizer, schedule = make("step", epochs=9, steps_per_epoch=1, step_epochs=2)
    twin, _ = make("constant")
    torchs = lr_scheduler.StepLR(twin, step_size=2, gamma=0.1)
    for _ in range(9):
        assert lr(optimizer) == pytest.approx(lr(twin), rel=1e-12)
        twin.step()
        torchs.step()
        schedule.step_batch()


@pytest.mark.parametrize("kind", ["constant", "onecycle", "step"])
def test_only_plateau_and_cyclic_listen_to_the_loss(kind):
    optimizer, schedule = make(kind)
    before = lr(optimizer)
    for _ in range(9):
        schedule.step_epoch(7.0, 64)
    assert lr(optimizer) == before


def test_constant_never_moves():
    optimizer, schedule = make("constant")
    assert {rate for rate, _ in trace(optimizer, schedule, 101)} == {0.1}


def run_epochs(optimizer, schedule, first, last):
    """Rates and momenta of epochs first..last-1, five batches each; the loss stalls at epoch 2."""
    seen = []
    for epoch in range(first, last):
        seen += trace(optimizer, schedule, 5)
        schedule.step_epoch(max(3.0 - epoch, 1.0), 64)
        seen.append((lr(optimizer), momentum(optimizer)))
    return seen


@pytest.mark.parametrize("algorithm", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("done", [0, 1, 4, 11, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_resume_goes_on_with_the_same_bits(kind, done, algorithm):
    numbers = {"epochs": 12, "steps_per_epoch": 5, "algorithm": algorithm, "cycle_momentum": True}
    numbers |= {"patience": 1, "factor": 0.7, "step_epochs": 5, "gamma": 0.3, "cycle_epochs": 3.5}
    whole = run_epochs(*make(kind, **numbers), 0, 12)

    optimizer, schedule = make(kind, **numbers)
    before = run_epochs(optimizer, schedule, 0, done)
    file = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    optimizer, schedule = make(kind, **numbers)
    schedule.load_state_dict(state["schedule"])
    if done:
        assert (lr(optimizer), momentum(optimizer)) == before[-1]  # without …
    optimizer.load_state_dict(state["optimizer"])  # … and with the optimizer's own
    assert before + run_epochs(optimizer, schedule, done, 12) == whole
    if kind in ("plateau", "cyclic"):
        assert schedule.scale == pytest.approx(0.7**4)  # cuts on both sides of most resumes
