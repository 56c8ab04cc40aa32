"""Which images train and which validate."""

import hashlib

import numpy as np

import dice

SPLIT = 4  # purpose of the dice, beside those of augment.py, loader.py and learner.py


def split_pooled(
    labels: np.ndarray, content: np.ndarray, val_fraction: float, split_seed: int
) -> np.ndarray:
    """Which images validate: stratified, `val_fraction` of every class, decided by the images'
    bytes alone.

    The dice are keyed by content, so a split does not change with the files' names or order, and
    identical images, of whatever class, are on one side. They are dealt first; the rest of the
    class fills its quota.
    """
    throw = dice.uniform(split_seed, SPLIT, content)
    _, group, copies = np.unique(content, return_inverse=True, return_counts=True)
    single = copies[group] == 1
    is_val = ~single & (throw < val_fraction)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        quota = min(int(len(members) * val_fraction + 0.5), len(members) - 1)
        free = members[single[members]]
        free = free[np.argsort(throw[free], kind="stable")]
        is_val[free[: max(quota - int(is_val[members].sum()), 0)]] = True
    return is_val


def fingerprint(content: np.ndarray, is_val: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for part in (content[~is_val], content[is_val]):
        digest.update(len(part).to_bytes(8, "little") + np.sort(part).tobytes())
    return digest.hexdigest()
