"""Pairs that belong together, and random orders that are the same on every machine and with every version."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def random_ranks(numbers: np.ndarray, *seed: int) -> np.ndarray:
    """Return a uint64 for every number that depends on it and the seed alone; sorting by it shuffles.

    The mixing step is SplitMix64's (Steele et al. 2014).

    Args:
        numbers: (N,) integers.
        seed: Any integers, negative ones included.
    """
    text = ",".join(map(str, seed)).encode()
    salt = np.frombuffer(blake2b(text, digest_size=8).digest(), np.uint64)
    mixed = np.ascontiguousarray(numbers, np.int64).view(np.uint64) + salt
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def numbered(keys: np.ndarray) -> np.ndarray:
    """Return the keys as 0, 1, 2 ...: equal ones are equal."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def connected(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (N,) group numbers: rows with an equal value in either array are in one group, and so are their groups.

    Args:
        first, second: (N,) from :func:`numbered`.
    """
    if not len(first):
        return np.zeros(0, np.int64)
    firsts, seconds = int(first.max()) + 1, int(second.max()) + 1
    ones = np.ones(len(first), np.int8)
    graph = coo_array((ones, (first, second + firsts)), shape=(firsts + seconds, firsts + seconds))
    _, labels = connected_components(graph, directed=False)
    return numbered(labels[first])
