import numpy as np
import pytest

import data
from cli import Mistake
from conftest import WNIDS
from split import split_pooled


def fake(classes: int, each: int, pairs: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and contents; `pairs` times an image of class c has a twin in class c + 1."""
    labels = np.repeat(np.arange(classes), each)
    content = np.random.default_rng(0).integers(0, 2**63, len(labels)).astype(np.uint64)
    for pair in range(pairs):
        c = pair % (classes - 1)
        content[(c + 1) * each + pair] = content[c * each + pair + 1]
    return labels, content


@pytest.mark.parametrize(
    ("each", "fraction", "val"),
    [
        (550, 0.3, 165),
        (10, 0.3, 3),
        (5, 0.3, 2),
        (5, 0.29, 1),
        (1, 0.3, 0),
        (2, 0.9, 1),
        (9, 0.05, 0),
    ],
)
def test_every_class_gives_its_share(each, fraction, val):
    labels, content = fake(4, each)
    is_val = split_pooled(labels, content, fraction, 0)
    assert np.bincount(labels[is_val], minlength=4).tolist() == [val] * 4


@pytest.mark.parametrize("seed", range(5))
def test_identical_images_are_on_one_side_and_the_shares_stay_exact(seed):
    labels, content = fake(6, 100, pairs=40)
    is_val = split_pooled(labels, content, 0.3, seed)
    assert not set(content[is_val]) & set(content[~is_val])
    assert np.bincount(labels[is_val]).tolist() == [30] * 6
    twins = np.array(
        [c for c, n in zip(*np.unique(content, return_counts=True), strict=True) if n > 1]
    )
    share = np.isin(twins, content[is_val]).mean()
    assert 0.05 < share < 0.6  # pairs are dealt too, not all put on one side


def test_the_seed_decides_and_the_order_of_files_does_not():
    labels, content = fake(5, 60, pairs=5)
    one = split_pooled(labels, content, 0.3, 1)
    np.testing.assert_array_equal(one, split_pooled(labels, content, 0.3, 1))
    other = split_pooled(labels, content, 0.3, 2)
    assert 0.1 < (one != other).mean() < 0.7
    shuffle = np.random.default_rng(3).permutation(len(labels))
    np.testing.assert_array_equal(
        split_pooled(labels[shuffle], content[shuffle], 0.3, 1), one[shuffle]
    )


def test_load_pooled_and_official(data_dir):
    pooled = data.load("tiny-imagenet", data_dir)
    assert (len(pooled.train), len(pooled.val)) == (30, 12)
    assert np.intersect1d(pooled.train, pooled.val).size == 0
    official = data.load("tiny-imagenet", data_dir, split="official")
    assert all(official.file(i).startswith("train/") for i in official.train)
    assert all(official.file(i).startswith("val/") for i in official.val)
    assert len(official.train) == 30
    names = {pooled.class_name(label) for label in pooled.labels}
    assert names == {"Egyptian cat", "goldfish", WNIDS[2]}


def test_fingerprint_tells_splits_apart(data_dir):
    def prints(**arguments):
        return data.load("tiny-imagenet", data_dir, **arguments).fingerprint

    assert prints() == prints(split_seed=0)
    different = [prints(), prints(split_seed=1), prints(split="official"), prints(val_fraction=0.5)]
    assert len(set(different)) == 4


def test_a_split_without_validation_images_is_a_mistake(data_dir, tree):
    with pytest.raises(Mistake, match=r"val_fraction=0.01 .*none to validate on"):
        data.load("tiny-imagenet", data_dir, val_fraction=0.01)
    for image in (tree / "val/images").iterdir():
        image.unlink()
    assert len(data.load("tiny-imagenet", data_dir).val) == 9
    with pytest.raises(Mistake, match="no val images; use --split=pooled"):
        data.load("tiny-imagenet", data_dir, split="official")
