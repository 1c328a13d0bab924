"""The contrastive losses against their equations written out with loops, and their invariants."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.losses import dcl_loss, dhn_nce_loss, hardness_weights, hn_nce_loss, info_nce_loss

LOSSES = {"info_nce": info_nce_loss, "dcl": dcl_loss, "hn_nce": hn_nce_loss, "dhn_nce": dhn_nce_loss}
SETTINGS = {"temperature": 0.6, "beta1": 0.15, "beta2": 0.4, "alpha": 0.7}


@pytest.fixture(params=LOSSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def features(size: int = 6, width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, width, generator=generator, dtype=torch.float64)
    texts = 0.7 * images + torch.randn(size, width, generator=generator, dtype=torch.float64)
    return images.requires_grad_(), texts.requires_grad_()


def reference(
    name: str, images, texts, *, temperature, beta1=0.0, beta2=0.0, alpha=1.0, same=None, detach=False
) -> torch.Tensor:
    """The equations as printed, one exponential at a time, both directions of each pair added: (B,)."""
    size = len(images)
    cosine = [[torch.dot(i / i.norm(), t / t.norm()) for t in texts] for i in images]
    total = []
    for anchor in range(size):
        value = torch.zeros((), dtype=torch.float64)
        for direction, beta in (("image to text", beta1), ("text to image", beta2)):
            positive = torch.exp(cosine[anchor][anchor] / temperature)
            negatives = []
            for other in range(size):
                row, column = (anchor, other) if direction == "image to text" else (other, anchor)
                if other != anchor and not (same is not None and same[row, column]):
                    negatives.append(cosine[row][column] / temperature)
            if not negatives:
                continue
            denominator = sum(torch.exp(beta * s) for s in negatives)
            weights = [len(negatives) * torch.exp(beta * s) / denominator for s in negatives]
            if detach:
                weights = [w.detach() for w in weights]
            hard = sum(w * torch.exp(s) for w, s in zip(weights, negatives, strict=True))
            plain = sum(torch.exp(s) for s in negatives)
            below = {"info_nce": positive + plain, "dcl": plain, "hn_nce": alpha * positive + hard, "dhn_nce": hard}
            value = value - torch.log(positive / below[name])
        total.append(value)
    return torch.stack(total)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_equal_the_equations(name: str, masked: bool, detach: bool) -> None:
    images, texts = features()
    same = None
    if masked:
        same = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) < 0.3  # not symmetric
        same[2] = True  # image 2 keeps no negative
    pairs = LOSSES[name](images, texts, **SETTINGS, same_caption=same, reduction="none", detach_weights=detach)
    expected = reference(name, images, texts, **SETTINGS, same=same, detach=detach)
    weights = torch.linspace(0.5, 2, 6, dtype=torch.float64)  # every pair's own gradient counts
    got = torch.autograd.grad((weights * pairs).sum(), (images, texts))
    wanted = torch.autograd.grad((weights * expected).sum(), (images, texts))
    torch.testing.assert_close(pairs, expected, rtol=0, atol=1e-10)
    for left, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.6])
def test_float32_is_accurate(name: str, temperature: float) -> None:
    images, texts = features(size=32, width=64, seed=1)
    settings = SETTINGS | {"temperature": temperature}
    exact = LOSSES[name](images, texts, **settings, reduction="none")
    single = LOSSES[name](images.float(), texts.float(), **settings, reduction="none")
    cosine = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    largest = float(cosine.detach().abs().max())
    assert single.dtype == torch.float32
    assert (single.double() - exact).abs().max() < 1e-6 * max(1.0, largest / temperature)


def test_reductions(name: str) -> None:
    images, texts = features()
    pairs = LOSSES[name](images, texts, **SETTINGS, reduction="none")
    assert pairs.shape == (6,)
    torch.testing.assert_close(LOSSES[name](images, texts, **SETTINGS, reduction="sum"), pairs.sum())
    torch.testing.assert_close(LOSSES[name](images, texts, **SETTINGS), pairs.sum() / 6)


def test_limits_that_join_the_losses() -> None:
    images, texts = features()
    same = torch.tensor([0, 1, 1, 2, 3, 3])
    for mask in (None, same):
        common = {"temperature": 0.3, "same_caption": mask, "reduction": "none"}
        dcl = dcl_loss(images, texts, **common)
        torch.testing.assert_close(dhn_nce_loss(images, texts, **common), dcl)
        torch.testing.assert_close(
            hn_nce_loss(images, texts, alpha=1, **common), info_nce_loss(images, texts, **common)
        )
        hard = {"beta1": 0.5, "beta2": 1.5}
        dhn = dhn_nce_loss(images, texts, **hard, **common)
        torch.testing.assert_close(hn_nce_loss(images, texts, **hard, alpha=0, **common), dhn)
        assert (hn_nce_loss(images, texts, **hard, **common) > dhn).all()
        assert (dhn > dcl).all()  # weight on hard negatives raises the loss
    two = {"temperature": 0.3, "reduction": "none"}
    torch.testing.assert_close(
        dhn_nce_loss(images[:2], texts[:2], beta1=3, beta2=7, **two), dcl_loss(images[:2], texts[:2], **two)
    )


def test_symmetries(name: str) -> None:
    images, texts = features()
    loss = LOSSES[name]
    same = torch.rand(6, 6, generator=torch.Generator().manual_seed(5)) < 0.2
    settings = {"temperature": 0.2, "alpha": 0.7, "reduction": "none"}
    pairs = loss(images, texts, beta1=0.3, beta2=1.1, same_caption=same, **settings)
    swapped = loss(texts, images, beta1=1.1, beta2=0.3, same_caption=same.T, **settings)
    torch.testing.assert_close(swapped, pairs)
    scaled = loss(images * 37, texts * 0.002, beta1=0.3, beta2=1.1, same_caption=same, **settings)
    torch.testing.assert_close(scaled, pairs)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = loss(images[order], texts[order], beta1=0.3, beta2=1.1, same_caption=same[order][:, order], **settings)
    torch.testing.assert_close(shuffled, pairs[order])


def test_caption_ids_equal_the_matrix(name: str) -> None:
    images, texts = features()
    ids = torch.tensor([7, 3, 7, 1, 3, 0])
    matrix = ids[:, None] == ids  # its diagonal is True, which must not matter
    one = LOSSES[name](images, texts, **SETTINGS, same_caption=ids)
    torch.testing.assert_close(LOSSES[name](images, texts, **SETTINGS, same_caption=matrix), one)
    assert LOSSES[name](images, texts, **SETTINGS) != one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_edges(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(8, 4, generator=generator)
    opposite = torch.cat([random[:4], -random[:4]])
    ids = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    for images, texts in ((random, random), (random, -random), (random[:1].expand(8, 4), random[:1].expand(8, 4)),
                          (opposite, opposite), (torch.zeros(8, 4), torch.zeros(8, 4))):  # fmt: skip
        for captions in (None, ids):
            leaves = images.to(dtype).clone().requires_grad_(), texts.to(dtype).clone().requires_grad_()
            value = LOSSES[name](*leaves, temperature=0.01, beta1=2.0, beta2=2.0, same_caption=captions)
            value.backward()
            assert torch.isfinite(value)
            assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_anchor_without_negatives_contributes_nothing(name: str) -> None:
    images, texts = features(4)
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[1, :] = True
    same[:, 1] = True  # neither image 1 nor text 1 has a negative
    pairs = LOSSES[name](images, texts, **SETTINGS, same_caption=same, reduction="none")
    assert pairs[1] == 0
    gradient = torch.autograd.grad(pairs.sum(), images)[0]
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any()
    with pytest.raises(ValueError, match="share one caption"):
        LOSSES[name](images, texts, **SETTINGS, same_caption=torch.zeros(4, dtype=torch.int64))


def test_hardness_weights_sum_to_the_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = 5 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
    negatives = torch.rand(7, 7, generator=generator) < 0.6
    negatives[3] = False
    weights = hardness_weights(similarity, 0.8, negatives)
    torch.testing.assert_close(weights.sum(dim=1), negatives.sum(dim=1).double())
    assert (weights[~negatives] == 0).all()
    row = [math.exp(0.8 * s) for s, keep in zip(similarity[0].tolist(), negatives[0].tolist(), strict=True) if keep]
    expected = torch.tensor([len(row) * value / sum(row) for value in row], dtype=torch.float64)
    torch.testing.assert_close(weights[0][negatives[0]], expected)
    assert (hardness_weights(similarity, 0.0, negatives)[negatives] - 1).abs().max() < 1e-12


def test_hard_negatives_are_pushed_away_harder() -> None:
    images, texts = features(16, 8)
    plain, hard = (
        torch.autograd.grad(dhn_nce_loss(images, texts, temperature=0.6, beta1=beta, beta2=beta), texts)[0]
        for beta in (0.0, 2.0)
    )
    cosine = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    cosine = cosine.detach().fill_diagonal_(-1)
    image, text = divmod(int(cosine.argmax()), 16)
    direction = images[image].detach()
    assert (hard[text] @ direction) > (plain[text] @ direction)  # descent moves the text further off the image


def test_autocast_and_half_precision_are_computed_in_float32(name: str) -> None:
    images, texts = (leaf.detach().float() for leaf in features(16, 32))
    wanted = LOSSES[name](images, texts, **SETTINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = LOSSES[name](images, texts, **SETTINGS)
    assert got.dtype == torch.float32 and torch.equal(got, wanted)
    rounded = LOSSES[name](images.bfloat16(), texts.bfloat16(), **SETTINGS)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, LOSSES[name](images.bfloat16().float(), texts.bfloat16().float(), **SETTINGS))


def test_temperature_can_be_learned(name: str) -> None:
    images, texts = features()
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(LOSSES[name](images, texts, **SETTINGS | {"temperature": temperature}), temperature)[
        0
    ]
    above, below = (LOSSES[name](images, texts, **SETTINGS | {"temperature": 0.6 + step}) for step in (1e-5, -1e-5))
    assert float(gradient) == pytest.approx(float((above - below).detach()) / 2e-5, rel=1e-5)


@pytest.mark.parametrize(
    ("images", "texts", "changes", "message"),
    [
        ((1, 4), (1, 4), {}, "at least 2"),
        ((0, 4), (0, 4), {}, "at least 2"),
        ((3, 4), (4, 4), {}, "shape"),
        ((3, 4), (3, 5), {}, "shape"),
        ((3, 4, 1), (3, 4, 1), {}, "shape"),
        ((3, 4), (3, 4), {"temperature": 0.0}, "temperature"),
        ((3, 4), (3, 4), {"temperature": math.nan}, "temperature"),
        ((3, 4), (3, 4), {"reduction": "average"}, "reduction"),
        ((3, 4), (3, 4), {"same_caption": torch.zeros(2, 2, dtype=torch.bool)}, "same_caption"),
        ((3, 4), (3, 4), {"same_caption": torch.zeros(3)}, "same_caption"),
    ],
)
def test_bad_input(name: str, images, texts, changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LOSSES[name](torch.ones(images), torch.ones(texts), **{"temperature": 0.6} | changes)


def test_bad_hardness() -> None:
    images, texts = features()
    with pytest.raises(InputError, match="beta"):
        dhn_nce_loss(images, texts, temperature=0.6, beta2=-1)
    with pytest.raises(InputError, match="alpha"):
        hn_nce_loss(images, texts, temperature=0.6, alpha=-0.1)


def _one_process(rank: int, folder: str) -> None:
    """A linear image and text tower on half of the batch; saves its loss and averaged parameter gradients."""
    torch.set_num_threads(1)
    world = torch.distributed
    world.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        half = slice(4 * rank, 4 * rank + 4)
        results = {}
        for loss, (towers, images, texts, ids) in ((key, _toy_batch()) for key in LOSSES):
            value = LOSSES[loss](
                images[half] @ towers[0],
                texts[half] @ towers[1],
                **SETTINGS,
                same_caption=ids[half],
                group=world.group.WORLD,
            )
            value.backward()
            for tower in towers:
                world.all_reduce(tower.grad)  # what DistributedDataParallel does: the mean over processes
                tower.grad /= 2
            results[loss] = value.detach(), [tower.grad for tower in towers]
        with pytest.raises(InputError, match=r"\[3, 4\]"):
            size = 3 + rank
            dcl_loss(images[:size], images[:size], temperature=0.6, group=world.group.WORLD)
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        world.destroy_process_group()


def _toy_batch():
    generator = torch.Generator().manual_seed(11)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (6, 3), (8, 5), (8, 6))]
    return (
        [draw[0].requires_grad_(), draw[1].requires_grad_()],
        draw[2],
        draw[3],
        torch.tensor([0, 1, 2, 3, 1, 4, 5, 0]),
    )


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_process, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for loss in LOSSES:
        towers, images, texts, ids = _toy_batch()
        value = LOSSES[loss](images @ towers[0], texts @ towers[1], **SETTINGS, same_caption=ids)
        value.backward()
        for got, gradients in (rank[loss] for rank in ranks):
            torch.testing.assert_close(got, value.detach(), rtol=0, atol=1e-12)
            for gradient, tower in zip(gradients, towers, strict=True):
                torch.testing.assert_close(gradient, tower.grad, rtol=0, atol=1e-12)
