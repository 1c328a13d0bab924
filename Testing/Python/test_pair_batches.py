"""Which pairs make up a batch, in any order and on any number of processes."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from pair_sets import index_of

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.image_text_data import BatchPlan, split
from MedCLIPSAMTraining.pair_groups import random_ranks


def collisions(values: list, batches: np.ndarray) -> int:
    return sum(count - 1 for batch in batches for count in Counter(values[row] for row in batch).values())


def test_every_row_once_an_epoch_and_other_batches_in_the_next():
    plan = BatchPlan(index_of(range(103)), batch=10, seed=5)
    assert len(plan) == 10
    epochs = [plan.epoch(number) for number in range(3)]
    for batches in epochs:
        assert batches.shape == (10, 10) and len(set(batches.ravel().tolist())) == 100
    assert not np.array_equal(epochs[0], epochs[1])
    left_over = [frozenset(range(103)) - set(batches.ravel().tolist()) for batches in epochs]
    assert len(set(left_over)) == 3
    assert not np.array_equal(epochs[0], BatchPlan(index_of(range(103)), batch=10, seed=6).epoch(0))


def test_no_equal_captions_or_images_in_a_batch():
    rng = random.Random(0)
    captions = [f"c{rng.randrange(200)}" for _ in range(600)] + ["frequent"] * 40  # as often as there are batches
    images = [f"i{rng.randrange(400)}" for _ in captions]
    plan = BatchPlan(index_of(captions, images=images), batch=16, seed=0)
    assert len(plan) == 40
    for epoch in range(3):
        batches = plan.epoch(epoch)
        assert collisions(captions, batches) == 0 == collisions(images, batches)
        assert plan.collisions(epoch) == (0, 0)
    shuffled = np.random.default_rng(0).permutation(640).reshape(40, 16)
    assert collisions(captions, shuffled) > 20  # so the above is no accident


def test_a_caption_too_frequent_is_spread_evenly():
    captions = ["normal"] * 500 + list(range(500))
    plan = BatchPlan(index_of(captions), batch=50)
    counts = [Counter(captions[row] for row in batch)["normal"] for batch in plan.epoch(0)]
    assert sum(counts) == 500 and set(counts) == {25}
    assert plan.collisions(0) == (500 - 20, 0)


def test_equal_images_part_where_captions_overlap_widely():
    """Each image with three of few captions: all pairs hang together, and dealing by caption leaves equal images."""
    rng = random.Random(2)
    images = [row // 3 for row in range(900)]
    captions = [f"c{rng.randrange(100)}" for _ in images]
    plan = BatchPlan(index_of(captions, images=images), batch=9)
    assert plan.collisions(0) == (0, 0)
    assert collisions(images, plan.epoch(0)) == 0


def test_turns_resume_anywhere_to_the_same_batches():
    index = index_of([number % 30 for number in range(70)])
    rows = np.arange(5, 70)
    every = list(BatchPlan(index, rows, batch=8, seed=2).turns(epochs=3))
    assert len(every) == 24 and set(every[0].rows.tolist()) <= set(rows.tolist())
    for begin in (0, 3, 8, 17, 24):
        plan = BatchPlan(index, rows, batch=8, seed=2)
        again = list(plan.turns(*divmod(begin, 8), epochs=3))
        assert [(turn.epoch, turn.position) for turn in again] == [
            (turn.epoch, turn.position) for turn in every[begin:]
        ]
        assert all(np.array_equal(one.rows, other.rows) for one, other in zip(again, every[begin:], strict=True))
    assert [turn.epoch for turn in BatchPlan(index, rows, batch=8).turns(1, 8, epochs=3)] == [2] * 8


def test_processes_share_the_same_global_batches():
    plan = BatchPlan(index_of(range(48)), batch=12)
    batch = plan.epoch(0)[0]
    for processes in (1, 2, 3, 4):
        parts = [batch[plan.share(rank, processes)] for rank in range(processes)]
        assert np.array_equal(np.concatenate(parts), batch)
    with pytest.raises(InputError, match="divided among 5"):
        plan.share(0, 5)
    with pytest.raises(InputError, match="rank"):
        plan.share(2, 2)


def test_order_is_the_same_on_every_machine_and_version():
    assert random_ranks(np.array([0, 1, -1]), 0, 1).tolist() == RANKS
    captions = [number % 7 for number in range(40)]
    assert BatchPlan(index_of(captions), batch=4, seed=9).epoch(2)[0].tolist() == FIRST_BATCH
    assert split(index_of(range(20)), 0.15, seed=4)[1].tolist() == HELD_OUT


RANKS = [8284541392817767351, 13432591998026913473, 9694852586279466229]
FIRST_BATCH = [1, 27, 10, 4]
HELD_OUT = [7, 8, 18]


def test_fingerprint_and_faulty_plans():
    index = index_of(range(10))
    prints = {
        BatchPlan(index, batch=4).fingerprint,
        BatchPlan(index, batch=4, seed=1).fingerprint,
        BatchPlan(index, batch=5).fingerprint,
        BatchPlan(index, np.arange(9), batch=4).fingerprint,
        BatchPlan(index_of([*range(9), "other"]), batch=4).fingerprint,
    }
    assert len(prints) == 5 and BatchPlan(index_of(range(10)), batch=4).fingerprint in prints
    with pytest.raises(InputError, match="no negatives"):
        BatchPlan(index, batch=1)
    with pytest.raises(InputError, match="10 pairs are fewer"):
        BatchPlan(index, batch=11)
    with pytest.raises(InputError, match="no place"):
        next(BatchPlan(index, batch=4).turns(0, 3))
