"""The loops over batches: they do not wait for a GPU, and hold no more than they must.

The stand-in for a GPU is torch's `meta` device, which has no values: whoever asks for one
(`.item()`, `.cpu()`, a boolean index) is refused. Not seen: several processes.
"""

import contextlib
import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data
import learner as learners
import train
from augment import Augmentation
from cli import Mistake
from config import Config
from loader import epoch_of, train_loader, val_loader


class NoWaiting(TorchDispatchMode):
    """Refuses also what copies values to the device without `non_blocking`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten._to_copy:
            source, target = args[0].device, kwargs.get("device") or args[0].device
            assert target == source or kwargs.get("non_blocking"), f"{source} -> {target} waits"
        if func.overloadpacket is torch.ops.aten.copy_:
            target, source = args[0].device, args[1].device
            waits = not (args[2:] or kwargs.get("non_blocking"))
            assert target == source or not waits, f"{source} -> {target} waits"
        return func(*args, **kwargs)


@pytest.fixture(params=[0.0, 0.9], ids=["", "averaged"])
def far(request, shapes_dir, monkeypatch):
    """A learner on a device without values, and its data."""
    monkeypatch.setattr(learners.models, "try_out", lambda *_: "explains")
    monkeypatch.setattr(learners.Learner, "_autocast", lambda _: contextlib.nullcontext())
    loaded = data.load("shapes", shapes_dir)
    config = Config(
        dataset="shapes",
        amp="false",
        compile="false",
        image_size=48,
        label_smoothing=0.1,
        l1=1e-5,
        ema=request.param,
        cutmix=0.5,
        nesterov=True,
        resolution_schedule="32:0.5",
    )
    monkeypatch.setattr(learners, "find_device", lambda *_: torch.device("meta"))
    return learners.Learner(config, loaded, 3), loaded


def test_a_step_waits_for_nothing(far):
    learner, loaded = far
    mixing = Augmentation(cutmix=1.0)
    first, *others = epoch_of(train_loader(loaded, mixing, 16, seed=0), 1)
    learner.begin_epoch(1)
    learner.train_step(first)  # what is copied once
    with NoWaiting():
        for batch in others:
            loss, _ = learner.train_step(batch)
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.item()


def test_images_grow_within_an_epoch_and_it_is_measured_at_its_last_size(shapes_dir):
    loaded = data.load("shapes", shapes_dir)
    grows = {"image_size": 24, "resolution_schedule": "8:0.25,16:0.75"}
    config = Config(dataset="shapes", model="small", device="cpu", epochs=2, **grows)
    learner = learners.Learner(config, loaded, 4)
    batch = next(epoch_of(train_loader(loaded, Augmentation(), 4, seed=0), 1))
    sizes = []
    for epoch in (1, 2):
        learner.begin_epoch(epoch)
        for _ in range(4):
            learner.train_step(batch)
            sizes.append(learner.pixels)
    assert sizes == [8] * 2 + [16] * 4 + [24] * 2
    for epoch, pixels in ((1, 16), (2, 24)):
        learner.be_after(epoch)
        assert learner.pixels == pixels


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_momentum_that_is_not_in_force_changes_nothing(shapes_dir, optimizer, momentum):
    config = Config(dataset="shapes", model="small", device="cpu", optimizer=optimizer)
    config = dataclasses.replace(config, nesterov=True, cycle_momentum=True, momentum=momentum)
    learner = learners.Learner(config, data.load("shapes", shapes_dir), 4)
    assert {group["momentum"] for group in learner.optimizer.param_groups} == {0.95}
    assert all(group["nesterov"] for group in learner.optimizer.param_groups)


def test_a_batch_of_all_images_is_compiled(shapes_dir, monkeypatch):
    loaded = data.load("shapes", shapes_dir)
    config = Config(dataset="shapes", model="small", device="cpu", batch_size=len(loaded.train) + 1)
    learner = learners.Learner(config, loaded, 1)
    seen = []
    monkeypatch.setattr(learner, "compiled", lambda x: seen.append(len(x)) or learner.model(x))
    (batch,) = epoch_of(train_loader(loaded, Augmentation(), 4096, seed=0), 1)
    learner.train_step(batch)
    assert seen == [len(loaded.train)]


def test_measuring_waits_for_nothing_until_its_end(far):
    learner, loaded = far
    first, *others = val_loader(loaded, 8)
    assert len(others) > 2
    looks = train.looks_of(loaded)
    mode, came_to_the_end = NoWaiting(), False

    def batches():
        nonlocal came_to_the_end
        yield first  # what is copied once
        with mode:
            yield from others
        came_to_the_end = True

    with pytest.raises(NotImplementedError, match="meta"):  # the first value that is asked for
        train.evaluate(learner, batches(), looks, lambda: None)
    assert came_to_the_end
    assert np.isnan(looks.energy).all()


@pytest.mark.skipif(sys.platform != "linux", reason="counts by Linux's /proc")
def test_measuring_keeps_no_file_of_a_worker_open(shapes_dir):
    """1,024 are allowed on most machines; 33,000 images in batches of 32 were more."""
    loaded = data.load("shapes", shapes_dir)
    config = Config(dataset="shapes", model="small", image_size=16, device="cpu")
    learner = learners.Learner(config, loaded, 1)
    opened = []

    def count() -> None:
        opened.append(len(os.listdir("/proc/self/fd")))

    train.evaluate(learner, val_loader(loaded, 1, workers=1), train.looks_of(loaded), count)
    assert len(opened) == len(loaded.val) > 30
    assert max(opened) - opened[0] < 10


def test_to_measure_any_batch_is_enough(shapes_dir):
    config = Config(dataset="shapes", image_size=8, batch_size=1, device="cpu")
    loaded = data.load("shapes", shapes_dir)
    with pytest.raises(Mistake, match="does not fit images of 8 px"):
        learners.Learner(config, loaded, 1)
    learners.Learner(config, loaded, 1, trains=False)


def test_a_device_without_values_is_refused():
    with pytest.raises(Mistake, match="device=meta cannot be used here"):
        learners.find_device("meta")
