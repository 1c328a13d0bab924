"""Which images are equal, byte for byte, whatever their files are called."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from MedCLIPSAMTraining.pair_shards import member_size, read_file
from MedCLIPSAMTraining.text_column import text_key

if TYPE_CHECKING:
    from MedCLIPSAMTraining.pair_index import PairIndex

_THREADS = 8


def content_keys(index: PairIndex) -> np.ndarray:
    """Return (N,) int64: pairs whose image files hold the same bytes have equal keys.

    Sizes are compared first, so mostly few files are read. A file that cannot be read is told by its name.
    """
    by_name = index.files.keys()
    _, first, inverse = np.unique(by_name, return_index=True, return_inverse=True)  # each file once
    keys = by_name[first].copy()
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = np.fromiter(pool.map(lambda row: _size(index, row), first.tolist()), np.int64, len(first))
        order = np.argsort(sizes, kind="stable")
        ordered = sizes[order]
        equal = np.concatenate([[False], ordered[1:] == ordered[:-1]])
        candidates = order[(equal | np.concatenate([equal[1:], [False]])) & (ordered >= 0)]
        for begin in range(0, len(candidates), 4096):
            part = candidates[begin : begin + 4096]
            contents = pool.map(lambda row: _content(index, row), first[part].tolist())
            for place, key in zip(part.tolist(), contents, strict=True):
                keys[place] = keys[place] if key is None else key
    return keys[inverse]


def _size(index: PairIndex, row: int) -> int:
    file = index[row].file
    size = member_size(file)
    if size is None:
        try:
            size = os.path.getsize(file)
        except OSError:
            size = -1
    return size


def _content(index: PairIndex, row: int) -> int | None:
    try:
        return text_key(read_file(index[row].file))
    except OSError:
        return None
