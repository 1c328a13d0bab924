"""Retrieval: ranks, ceiling and chance against references written here; paired tests; tables and picture."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from MedCLIPSAMLib import retrieval
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.retrieval_output import ceiling_text
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, shuffled_batches
from MedCLIPSAMLib.significance import holm, paired_t, wilcoxon_signed_rank


def vectors(count: int, noise: float, seed: int = 0, dimension: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Captions at random, and images around them."""
    rng = np.random.default_rng(seed)
    texts = rng.standard_normal((count, dimension))
    return texts + noise * rng.standard_normal((count, dimension)), texts


def reference_accuracy(images, texts, captions, batch, runs, seed, k, direction) -> list[float]:
    """The definition, one question after the other: is a candidate with the right caption among the best k?"""
    found = []
    for run in range(runs):
        order = np.random.default_rng([seed, run]).permutation(len(captions))
        hits = 0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            for asked in chosen:
                question = images[asked] if direction == "image_to_text" else texts[asked]
                answers = texts if direction == "image_to_text" else images
                cosine = [
                    float(question @ answers[j] / np.linalg.norm(question) / np.linalg.norm(answers[j])) for j in chosen
                ]
                best = sorted(range(len(chosen)), key=lambda j: (-round(cosine[j], 12), j))[:k]
                hits += any(captions[chosen[j]] == captions[asked] for j in best)
        found.append(hits / len(captions))
    return found


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_accuracy_is_that_of_the_definition(direction: str, k: int) -> None:
    images, texts = vectors(107, 1.5)
    captions = [f"caption {index % 60}" for index in range(107)]
    texts = texts[[int(caption.split()[1]) for caption in captions]]  # equal captions have equal vectors
    report = retrieval.evaluate(images, texts, captions, batch=25, runs=3, seed=4)
    expected = reference_accuracy(images, texts, captions, 25, 3, 4, k, direction)
    assert report.accuracy(direction, k) == pytest.approx(expected, abs=1e-12)
    assert report.mean(direction, k) == pytest.approx(np.mean(expected))
    assert report.sd(direction, k) == pytest.approx(np.std(expected, ddof=1))
    assert 0.1 < report.mean(direction, k) < 0.95  # neither trivial nor hopeless, so that the comparison says something


def test_equal_captions_count_as_hits_and_the_ceiling_says_what_they_would_cost() -> None:
    captions = ["A mass", "a  MASS ", "b", "c", "c", "c"]
    texts = np.eye(6)[[0, 0, 1, 2, 2, 2]]
    report = retrieval.evaluate(texts, texts, captions, batch=6, runs=2)
    for direction in DIRECTIONS:
        assert report.mean(direction, 1) == 1.0
        # Of two equal ones the first alone finds its own partner at once, of three one, or two among the first two.
        assert report.accuracy(direction, 1, own=True) == pytest.approx([3 / 6] * 2)
        assert report.accuracy(direction, 2, own=True) == pytest.approx([5 / 6] * 2)
    assert report.ceiling(1) == pytest.approx(3 / 6)
    assert report.ceiling(2) == pytest.approx(5 / 6)
    assert "83.3 % of the examples share their caption" in ceiling_text(report)
    assert "could exceed 50.0 % (top-1) and 83.3 % (top-2)" in ceiling_text(report)


def test_ties_keep_the_order_of_the_batch() -> None:
    report = retrieval.evaluate(np.ones((4, 3)), np.ones((4, 3)), list("abcd"), batch=4, runs=1, seed=2)
    (order,) = shuffled_batches(4, 4, 2, 0)
    for direction in DIRECTIONS:
        assert report.ranks[direction][0, order].tolist() == [0, 1, 2, 3]


def test_chance_is_that_of_random_orders() -> None:
    images, texts = vectors(10, 0.0)
    captions = [*"aabcdefghi"]
    report = retrieval.evaluate(images, texts, captions, batch=10, runs=1)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(10), (40_000, 1)), axis=1)
    for k in (1, 2):
        single = (orders[:, :k] == 5).any(axis=1).mean()
        double = np.isin(orders[:, :k], (0, 1)).any(axis=1).mean()
        assert report.chance(k) == pytest.approx((8 * single + 2 * double) / 10, abs=0.005)
    assert retrieval.evaluate(images, texts, list("abcdefghij"), batch=5).chance(1) == pytest.approx(0.2)


def test_batches_hold_every_example_once_and_never_a_single_one() -> None:
    for count, sizes in ((7042, [50] * 140 + [42]), (101, [50, 51]), (100, [50, 50]), (38, [38]), (2, [2])):
        batches = shuffled_batches(count, 50, 0, 3)
        assert [len(one) for one in batches] == sizes
        assert sorted(np.concatenate(batches)) == list(range(count))
    first, second = (np.concatenate(shuffled_batches(100, 50, 0, run)) for run in (0, 1))
    assert not np.array_equal(first, second)


def test_runs_do_not_depend_on_how_many_there_are_and_length_does_not_matter() -> None:
    images, texts = vectors(60, 1.0)
    captions = [str(index) for index in range(60)]
    few, many = (retrieval.evaluate(images, texts, captions, batch=20, runs=runs) for runs in (2, 5))
    longer = retrieval.evaluate(images * 7, texts / 3, captions, batch=20, runs=2)
    for direction in DIRECTIONS:
        assert np.array_equal(few.ranks[direction], many.ranks[direction][:2])
        assert np.array_equal(few.ranks[direction], longer.ranks[direction])
    assert retrieval.evaluate(images, texts, captions, runs=1).sd("image_to_text", 1) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": ["a"] * 5}, "there are 5 captions"),
        ({"image_vectors": np.zeros((4, 3))}, "4 image vector(s) are of length 0"),
        ({"text_vectors": np.full((4, 3), np.nan)}, "4 text vector(s) are not finite"),
        ({"text_vectors": np.ones(4)}, r"text vectors have shape (4,)"),
        ({"batch": 1}, "batch 1"),
        ({"runs": 0}, "runs 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_evaluated_is_said(change: dict, message: str) -> None:
    given = {"image_vectors": np.ones((4, 3)), "text_vectors": np.ones((4, 3)), "captions": list("abcd")} | change
    with pytest.raises(InputError) as caught:
        retrieval.evaluate(**given)
    assert message in str(caught.value)


def test_one_pair_is_too_few() -> None:
    with pytest.raises(InputError, match="at least 2"):
        retrieval.evaluate(np.ones((1, 3)), np.ones((1, 3)), ["a"])


# --- paired tests ---


def test_holm_agrees_with_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    values = np.random.default_rng(0).uniform(0, 0.3, 9)
    for level in (0.05, 0.2):  # rejected one after the other, from the smallest, until one is not
        rejected = set()
        for place, index in enumerate(np.argsort(values)):
            if values[index] > level / (len(values) - place):
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(holm(values.tolist())) if value <= level} == rejected


def test_signed_rank_test_counts_all_signs() -> None:
    rng = np.random.default_rng(1)
    for size in (5, 9, 12):
        first, second = rng.normal(0.4, 1, size), rng.normal(0, 1, size)
        expected = stats.wilcoxon(first, second, method="exact").pvalue
        assert wilcoxon_signed_rank(first, second) == pytest.approx(expected, rel=1e-9)
    # Ties and zeros, which scipy's older versions only approximate: count all signs here.
    difference = np.array([0.02, 0.02, -0.02, 0.04, 0.0, 0.06])
    ranks = stats.rankdata(np.abs(difference[difference != 0]))
    observed = abs(float((ranks * np.sign(difference[difference != 0])).sum()))
    sums = [abs(float(np.dot(ranks, signs))) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    expected = np.mean([one >= observed - 1e-9 for one in sums])
    assert wilcoxon_signed_rank(difference, np.zeros(6)) == pytest.approx(expected)
    large = rng.normal(0.1, 1, 200)
    expected = stats.wilcoxon(large, correction=False, method="approx").pvalue
    assert wilcoxon_signed_rank(large, np.zeros(200)) == pytest.approx(expected, rel=1e-6)
    assert wilcoxon_signed_rank(np.ones(5), np.ones(5)) == 1.0
    assert wilcoxon_signed_rank(np.arange(1, 6), np.zeros(5)) == pytest.approx(0.0625)


def test_t_test_knows_when_it_says_nothing() -> None:
    first, second = np.array([0.4, 0.5, 0.45]), np.array([0.3, 0.45, 0.32])
    assert paired_t(first, second) == pytest.approx(float(stats.ttest_rel(first, second).pvalue))
    assert paired_t(first, first) == 1.0
    assert paired_t(first + 0.1, first) is None
    assert paired_t(first[:1], second[:1]) is None


def reports(**noise: float) -> dict[str, retrieval.RetrievalReport]:
    captions = [str(index) for index in range(200)]
    return {
        name: retrieval.evaluate(*vectors(200, level, seed=3), captions, batch=20, runs=5)
        for name, level in noise.items()
    }


def test_paired_tests_tell_a_difference_from_none() -> None:
    found = reports(good=0.8, same=0.8, poor=2.0)
    rows = {(row.first, row.second, row.direction, row.k): row for row in retrieval.compare(found)}
    assert len(rows) == 3 * 4
    clear, none = rows["good", "poor", "image_to_text", 1], rows["good", "same", "image_to_text", 1]
    assert clear.difference == pytest.approx(
        found["good"].mean("image_to_text", 1) - found["poor"].mean("image_to_text", 1)
    )
    assert clear.ci95[0] < clear.difference < clear.ci95[1]
    assert clear.p_mcnemar < 1e-6 and clear.p_t < 0.01
    assert (none.difference, none.p_mcnemar, none.p_t, none.p_wilcoxon) == (0.0, 1.0, 1.0, 1.0)
    # McNemar by its definition, from the hits in most of the runs; the correction multiplies by 12 at most.
    usual = [found[name].hits("image_to_text", 1).sum(axis=0) >= 3 for name in ("good", "poor")]
    only = [int((usual[a] & ~usual[1 - a]).sum()) for a in (0, 1)]
    assert [clear.only_first, clear.only_second] == only
    one_tail = sum(math.comb(sum(only), count) for count in range(min(only) + 1)) / 2 ** sum(only)
    assert 2 * one_tail <= clear.p_mcnemar * (1 + 1e-9) <= 24 * one_tail * (1 + 1e-6)


def test_only_answers_to_the_same_questions_are_compared() -> None:
    images, texts = vectors(20, 0.5)
    captions = [str(index) for index in range(20)]
    one = retrieval.evaluate(images, texts, captions, batch=10)
    others = {
        "captions": retrieval.evaluate(images, texts, captions[::-1], batch=10),
        "batch": retrieval.evaluate(images, texts, captions, batch=5),
        "seed": retrieval.evaluate(images, texts, captions, batch=10, seed=1),
        "runs": retrieval.evaluate(images, texts, captions, batch=10, runs=4),
    }
    for other in others.values():
        with pytest.raises(InputError, match="the same questions"):
            retrieval.compare({"a": one, "b": other})
    assert retrieval.compare({"a": one}) == []


# --- tables and picture ---


def test_table_is_markdown_with_the_best_in_bold() -> None:
    found = reports(**{"good|one": 0.8, "poor": 2.0})
    text = retrieval.table(found, retrieval.compare(found))
    lines = [line.replace("\\|", "/") for line in text.splitlines()]
    widths = {line.count("|") for line in lines[2:6]}
    assert widths == {6}
    good = next(line for line in lines if line.startswith("| good/one |"))
    assert good.count("**") == 8
    one = found["good|one"]
    assert f"**{100 * one.mean('image_to_text', 1):.1f} ± {100 * one.sd('image_to_text', 1):.1f}**" in good
    assert any(line.startswith("| chance | 5.0 | 10.0 |") for line in lines)
    assert "could exceed 100.0 % (top-1)" in text
    assert "< 0.001" in text and "p (McNemar)" in text


def test_picture_is_written_whole_and_without_pyplot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    retrieval.plot(reports(**{"_hidden$": 0.8, "poor": 2.0}), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert picture.width > 600 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    with pytest.raises(InputError):
        retrieval.plot({}, tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
