"""Balanced pseudo-labels: balance, swapping, queue, ranks, bad input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from varcon_plugin import MomentumCentroids, PseudoLabels
from varcon_plugin.pseudo_labels import balanced_assignment

Run = Callable[..., list[Any]]
D = 8
SIZES = (3, 8)  # images of two ranks


def loops(logits: Tensor, iterations: int) -> Tensor:
    """Sinkhorn as it is told: scale columns, then rows, of the exponentials."""
    table = [[math.exp(x) for x in row] for row in logits.tolist()]
    for _ in range(iterations):
        for c in range(len(table[0])):
            total = sum(row[c] for row in table)
            for row in table:
                row[c] /= total
        for row in table:
            total = sum(row)
            row[:] = [x / total for x in row]
    return torch.tensor(table, dtype=logits.dtype)


def make(classes: int = 4, **options: Any) -> tuple[PseudoLabels, MomentumCentroids]:
    labels = PseudoLabels(classes, D, **options)
    return labels.double(), MomentumCentroids(classes, D).double()


def embeddings(images: int, views: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views * images, D, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_assignment_equals_loops(iterations: int) -> None:
    logits = 5 * torch.randn(13, 4, dtype=torch.float64)
    found = balanced_assignment(logits, iterations=iterations).exp()
    torch.testing.assert_close(found, loops(logits, iterations))


def test_every_row_sums_to_one_and_every_class_to_its_share() -> None:
    logits = 3 * torch.randn(60, 5, dtype=torch.float64)
    share = balanced_assignment(logits, iterations=200).exp()
    torch.testing.assert_close(share.sum(1), torch.ones(60, dtype=torch.float64))
    torch.testing.assert_close(share.sum(0), torch.full((5,), 12.0).double())


def test_log_space_survives_a_sharpness_that_overflows_float32() -> None:
    labels = PseudoLabels(4, D, sharpness=1e-3)  # exp(1000) overflows
    found = labels(embeddings(32).float(), MomentumCentroids(4, D))
    assert found.entropy.isfinite().all()
    assert len(found.own.unique()) == 4


def test_classes_stay_used_where_all_images_are_nearest_to_one() -> None:
    labels, bank = make(iterations=30)
    crowd = torch.ones(1, D, dtype=torch.float64) + 0.05 * embeddings(64)
    labels(crowd, bank)  # gives the bank its directions
    nearest = (crowd @ bank.means.T).argmax(1)
    assert len(nearest.unique()) == 1
    counts = labels(crowd, bank).own.bincount(minlength=4)
    assert counts.min() >= 16  # of 32 each


@pytest.mark.parametrize("views", [2, 3])
def test_each_view_is_labelled_by_the_next(views: int) -> None:
    labels, bank = make()
    found = labels(embeddings(10, views), bank, views)
    own, told = found.own.view(views, 10), found.labels.view(views, 10)
    for view in range(views):
        assert torch.equal(told[view], own[(view + 1) % views])
    assert not torch.equal(found.own, found.labels)


def test_order_and_scale_of_the_batch_do_not_matter() -> None:
    labels, bank = make()
    x = embeddings(10)
    order = torch.randperm(10)
    both = torch.cat((order, order + 10))
    found = labels(x, bank).own
    assert torch.equal(labels(7 * x[both], bank).own, found[both])


def test_the_bank_gets_directions_once_and_keeps_what_it_knows() -> None:
    labels, bank = make()
    known = torch.eye(D, dtype=torch.float64)[0]
    bank.means[2], bank.units[2], bank.seen[2] = known, known, True
    labels(embeddings(10), bank)
    before = bank.means.clone()
    assert bank.seen.all()
    assert torch.equal(before[2], known)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(4).double())
    labels(embeddings(10, seed=1), bank)
    assert torch.equal(bank.means, before)


def test_classes_of_separate_clusters_are_found() -> None:
    """Assign and move in turns, without any network: spherical k-means, balanced."""
    labels, bank = make(iterations=10)
    loss_like = torch.arange(40) % 4
    x = torch.eye(D).double()[loss_like] + 0.1 * embeddings(20)
    for _ in range(20):
        found = labels(x, bank, 2)
        moved_by = bank(torch.nn.functional.normalize(x), found.own, None, []).batch
        assert moved_by is not None
        bank.move(moved_by)
    pairs = {(int(a), int(b)) for a, b in zip(found.own, loss_like, strict=True)}
    assert len(pairs) == 4  # one class a cluster


def test_queue_takes_part_in_the_balance() -> None:
    labels, bank = make(queue_size=12)
    old, new = embeddings(6), embeddings(5, seed=1)
    labels(old, bank)
    found = labels(new, bank)
    unit = torch.nn.functional.normalize(torch.cat((new, old)))
    logits = unit @ torch.nn.functional.normalize(bank.means).T / labels.sharpness
    whole = balanced_assignment(logits, iterations=3)[:10]
    assert torch.equal(found.own, whole.argmax(1))
    alone = balanced_assignment(logits[:10], iterations=3)
    assert not torch.allclose(alone, whole)


def test_queue_waits_and_is_filled_meanwhile() -> None:
    late, bank = make(queue_size=12, queue_after=2)
    never, other = make()
    batches = [embeddings(6, seed=seed) for seed in range(3)]
    for x in batches[:2]:
        assert torch.equal(late(x, bank).entropy, never(x, other).entropy)
    assert torch.equal(bank.means, other.means)
    assert not torch.equal(late(batches[2], bank).entropy, never(batches[2], other)[2])


def test_nothing_moves_in_evaluation() -> None:
    labels, bank = make(queue_size=12)
    labels(embeddings(6), bank)
    before = copy.deepcopy(labels.state_dict())
    labels.eval()(embeddings(6, seed=1), bank)
    for name, value in labels.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    labels, bank = make(queue_size=16, queue_after=1)
    for seed in range(3):
        labels(embeddings(5, seed=seed), bank)
    again, other = make(queue_size=16, queue_after=1)
    again.load_state_dict(labels.state_dict())
    other.load_state_dict(bank.state_dict())
    x = embeddings(5, seed=9)
    for one, two in zip(labels(x, bank), again(x, other), strict=True):
        assert torch.equal(one, two)


def test_a_row_that_is_not_finite_spoils_nothing_else() -> None:
    labels, bank = make(queue_size=20)
    x = embeddings(10)
    x[3, 0] = torch.nan
    labels(x, bank)
    assert labels.queue.isfinite().all()
    assert labels(embeddings(10, seed=1), bank).entropy.isfinite().all()


def rank_labels(rank: int) -> list[Tensor]:
    labels, bank = make(queue_size=18, queue_after=1)
    found = []
    for seed in range(4):
        x = embeddings(sum(SIZES), seed=seed).view(2, -1, D).split(SIZES, dim=1)[rank]
        own = labels(x.flatten(0, 1), bank).own
        found.append(own.view(2, -1))
    return [*found, labels.queue]


def test_two_ranks_assign_as_one_process(run_ranks: Run) -> None:
    ranks = run_ranks(rank_labels, 2)
    labels, bank = make(queue_size=18, queue_after=1)
    for step, parts in enumerate(zip(*ranks, strict=True)):
        if step == 4:
            for part in parts:
                torch.testing.assert_close(part, labels.queue)
            break
        own = labels(embeddings(sum(SIZES), seed=step), bank).own
        assert torch.equal(torch.cat(parts, dim=1), own.view(2, -1))


def bad_on_one_rank(rank: int) -> str:
    labels, bank = make()
    try:
        labels(embeddings(4)[:, : D - rank], bank)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def test_a_bad_batch_on_one_rank_is_told_on_all(run_ranks: Run) -> None:
    good, bad = run_ranks(bad_on_one_rank, 2)
    assert "rank 1 of 2 got arguments" in good
    assert f"rank 1 of 2: embeddings must be (views * N, {D})" in bad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "num_classes must be >= 2, got 1"),
        ({"sharpness": 0.0}, "sharpness must be > 0, got 0.0"),
        ({"sharpness": math.nan}, "sharpness must be > 0, got nan"),
        ({"iterations": 0}, "iterations must be >= 1, got 0"),
        ({"queue_size": -1}, "queue_size must be >= 0, got -1"),
        ({"queue_after": -1}, "queue_after must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_more_classes_than_batch_and_queue_can_fill() -> None:
    labels, bank = make(classes=30, queue_size=9)
    message = r"got 30 classes with 20 embeddings in a batch .* and a queue of 9"
    with pytest.raises(ValueError, match=message):
        labels(embeddings(10), bank)
    assert not bank.seen.any()  # nothing had been done


def test_a_bank_of_another_size() -> None:
    labels, _ = make()
    x = embeddings(10)
    with pytest.raises(ValueError, match=r"num_classes of the bank .* 4, got 5"):
        labels(x, MomentumCentroids(5, D))
    with pytest.raises(ValueError, match=r"dim of the bank .* 8, got 9"):
        labels(x, MomentumCentroids(4, D + 1))


@pytest.mark.parametrize(
    ("rows", "views", "message"),
    [(10, 1, "views must be at least 2"), (9, 2, "got 9 rows"), (0, 2, "got 0 rows")],
)
def test_batches_that_are_no_views(rows: int, views: int, message: str) -> None:
    labels, bank = make()
    with pytest.raises(ValueError, match=message):
        labels(torch.randn(rows, D), bank, views)
