import dataclasses
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from augment import Augmentation
from conftest import REPO, write_tree
from loader import CachedImages, epoch_of, to_input, train_loader, val_loader

FULL = Augmentation(4, 0.5, 5.0, 16, 2, 0.5, 0.4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_tree(data_dir / "tiny-imagenet-200", train=20)
    return data.load("tiny-imagenet", data_dir)  # 51 + 21 images


def batches(loader, epoch):
    return [tuple(part.clone() for part in batch[:4]) for batch in epoch_of(loader, epoch)]


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for one, two in zip(a, b, strict=True)
        for x, y in zip(one, two, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_matter_and_epochs_differ(loaded):
    expected = None
    for workers in (0, 1, 3):
        loader = train_loader(loaded, FULL, 16, seed=0, workers=workers)
        epochs = [batches(loader, epoch) for epoch in (1, 2, 1)]
        assert same(epochs[0], epochs[2]), "an epoch depends on what came before it"
        assert not same(epochs[0], epochs[1])
        expected = expected or epochs
        assert all(same(a, b) for a, b in zip(epochs, expected, strict=True)), f"{workers} workers"


def test_epochs_batches_and_samples_are_augmented_differently(loaded):
    # The same picture everywhere: what differs is the augmentation alone.
    one = dataclasses.replace(loaded, train=np.zeros(64, np.int64))
    seen = []
    loader = train_loader(one, Augmentation(4, 0.5, 5.0, 16, 2), 16, seed=0, workers=2)
    for epoch in (1, 2):
        for batch in epoch_of(loader, epoch):
            seen += [image.numpy().tobytes() for image in batch.images]
    assert len(seen) == 128
    assert len(set(seen)) == 128


def test_seeds_differ(loaded):
    assert not same(
        batches(train_loader(loaded, FULL, 16, seed=0), 1),
        batches(train_loader(loaded, FULL, 16, seed=1), 1),
    )


def test_an_epoch_has_every_training_image_once_with_its_label(loaded):
    loader = train_loader(loaded, Augmentation(), 16, seed=0)
    assert len(loader) == 4
    out = batches(loader, 5)
    assert [len(batch[1]) for batch in out] == [16, 16, 16, 3]  # the short last batch is kept
    images = np.concatenate([batch[0] for batch in out])
    labels = np.concatenate([batch[1] for batch in out])

    def rows(images, labels):
        return sorted(
            (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    assert rows(images, labels) == rows(loaded.images[loaded.train], loaded.labels[loaded.train])
    assert labels.tolist() != loaded.labels[loaded.train].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_has_every_image_once_in_order_as_it_is(loaded, workers):
    out = batches(val_loader(loaded, 8, workers), 0)
    np.testing.assert_array_equal(np.concatenate([b[0] for b in out]), loaded.images[loaded.val])
    np.testing.assert_array_equal(np.concatenate([b[1] for b in out]), loaded.labels[loaded.val])
    assert all(torch.equal(b[1], b[2]) and (b[3] == 1).all() for b in out)


def test_mixed_batches_carry_both_labels(loaded):
    loader = train_loader(loaded, Augmentation(cutmix=1.0), 16, seed=0)
    for _, labels, partners, share in batches(loader, 1):
        assert torch.equal(partners, labels.roll(1))
        assert ((share >= 0) & (share <= 1)).all()


def test_loading_leaves_torchs_and_numpys_random_streams_alone(loaded):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(train_loader(loaded, FULL, 16, seed=0, workers=2), 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("center_crop", [0, 40])
def test_spawned_workers_would_open_the_cache_instead_of_copying_it(loaded, center_crop):
    if center_crop:
        cache = data.crop_cache(loaded.cache, center_crop)
        loaded = dataclasses.replace(loaded, cache=cache)
    sent = pickle.dumps(CachedImages(loaded, None))
    assert len(sent) < 10_000 < loaded.images.nbytes
    received = pickle.loads(sent)
    assert isinstance(received.images, np.memmap)
    np.testing.assert_array_equal(received.images, loaded.images)


KILLED = """
import os, pathlib, sys
import data, loader
loaded = data.load("shapes", pathlib.Path(sys.argv[1]))
batches = iter(loader.val_loader(loaded, 8, workers=1))
next(batches)
print(*os.listdir(os.environ["TMPDIR"]), flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_of_a_process_that_is_killed_leave_no_folder(shapes_dir):
    # Short, as the name of a socket in it has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        env = {**os.environ, "TMPDIR": folder}
        command = [sys.executable, "-c", KILLED, str(shapes_dir)]
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        assert "pymp-" in done.stdout
        deadline = time.monotonic() + 10
        while left := list(Path(folder).iterdir()):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def test_input_is_normalised_channels_last():
    images = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    x = to_input(images, mean, std, 64)
    assert x.shape == (5, 3, 64, 64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("size", [32, 48, 224])
def test_input_is_resized_on_the_device(size):
    images = torch.full((2, 64, 64, 3), 128, dtype=torch.uint8)
    images[:, 32:] = 255
    x = to_input(images, (0, 0, 0), (1, 1, 1), size)
    assert x.shape == (2, 3, size, size)
    torch.testing.assert_close(x[:, :, : size // 4], torch.full((2, 3, size // 4, size), 128 / 255))
    torch.testing.assert_close(x[:, :, -(size // 4) :], torch.ones((2, 3, size // 4, size)))
