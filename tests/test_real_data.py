"""Facts about the real Tiny ImageNet, where TINY_IMAGENET_DIR names the folder that contains it."""

import os
from pathlib import Path

import numpy as np
import pytest

import data
from conftest import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "TINY_IMAGENET_DIR" not in os.environ,
        reason="needs the real data: set TINY_IMAGENET_DIR to the folder with tiny-imagenet-200/",
    ),
]


@pytest.fixture
def real() -> Path:
    return Path(os.environ["TINY_IMAGENET_DIR"])


def test_check_finds_what_is_known_of_it(real):
    done = run("data.py", "check", "--data_dir", real)
    assert done.returncode == 0, done.stderr
    for words in (
        "200 classes, 110,000 images",
        "100,000 images, 500 a class\n",
        "10,000 images, 50 a class\n",
        "greyscale 1,989 (1,821 train, 168 val)",
        "27 pairs with two different labels (7 of them across train and val), 0 with the same",
        "475 of them degenerate (434 train, 41 val)",
        "unreadable: 0",
    ):
        assert words in done.stdout


@pytest.mark.parametrize("split_seed", [0, 1])
def test_pooled_split(real, split_seed):
    loaded = data.load("tiny-imagenet", real, split_seed=split_seed)
    assert (len(loaded.train), len(loaded.val)) == (77_000, 33_000)
    for part, each in ((loaded.train, 385), (loaded.val, 165)):
        assert np.bincount(loaded.labels[part]).tolist() == [each] * 200
    content = loaded.cache.content
    assert np.intersect1d(content[loaded.train], content[loaded.val]).size == 0
    assert loaded.images.nbytes == 110_000 * 64 * 64 * 3
