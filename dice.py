"""Random numbers that depend on what they are for, never on who draws them or in which order.

`uniform(seed, epoch, positions)` is a pure function: the same key gives the same number in every
process, with any number of workers, on every machine and numpy version. The mixing is SplitMix64's
finaliser (Steele et al., 2014).
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters neighbouring values over the whole range."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def bits(*key: int | np.ndarray) -> np.ndarray:
    """64 random bits for each element of the key; the parts of the key are broadcast like numpy
    arrays.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            state = mix((state ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(*key: int | np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each element of the key, with 53 random bits."""
    return (bits(*key) >> np.uint64(11)) * 2.0**-53


def integer(u: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Turn numbers in [0, 1) into integers in 0..n-1."""
    return np.minimum((u * n).astype(np.int64), np.asarray(n) - 1)


def order(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1 for this key."""
    return np.argsort(bits(*key, np.arange(n)), kind="stable")
