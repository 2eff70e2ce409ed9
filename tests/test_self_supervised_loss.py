"""The loss without labels: its terms, ranks, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from varcon_plugin import (
    MomentumCentroids,
    PseudoLabels,
    SelfSupervisedVarConLoss,
    VarConLoss,
    varcon_terms,
)
from varcon_plugin.functional import normalize

Run = Callable[..., list[Any]]
D = 6
SIZES = (3, 8)  # images of two ranks


def batch(images: int = 11, views: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(views, images, D, dtype=torch.float64, generator=generator)
    return list(x)


def both_terms(**options: Any) -> SelfSupervisedVarConLoss:
    labels = PseudoLabels(4, D, queue_size=12)
    options.setdefault("pseudo_labels", labels)
    return SelfSupervisedVarConLoss(**options).double()


@pytest.mark.parametrize("views", [2, 3])
def test_first_term_compares_each_view_with_the_other_views(views: int) -> None:
    x = batch(5, views)
    loss = SelfSupervisedVarConLoss(temperature=0.2, epsilon=0.05)(*x)
    unit = normalize(torch.cat(x))
    mean = normalize(unit.view(views, 5, D).sum(0))
    others = torch.stack(
        [
            normalize(sum(unit[w * 5 + i] for w in range(views) if w != v))
            for v in range(views)
            for i in range(5)
        ]
    )
    terms = varcon_terms(
        unit,
        torch.arange(5).repeat(views),
        mean,
        temperature=0.2,
        epsilon=0.05,
        own=others,
    )
    torch.testing.assert_close(loss, terms.loss.mean())


def test_sum_of_both_terms() -> None:
    x, teacher = batch(), batch(seed=1)
    criterion = both_terms(latent_weight=0.3, latent_temperature=0.2, momentum=0.5)
    found = criterion.forward_components(*x, teacher=teacher)

    labels, bank = PseudoLabels(4, D).double(), MomentumCentroids(4, D, 0.5).double()
    assignment = labels(torch.cat(teacher), bank)
    latent = VarConLoss(0.2, centroids=bank)(torch.cat(x), assignment.labels)
    image = SelfSupervisedVarConLoss()(*x)
    torch.testing.assert_close(found.loss, image + 0.3 * latent)
    assert found.assignment is not None
    assert torch.equal(found.assignment.labels, assignment.labels)
    assert found.latent is not None
    torch.testing.assert_close(found.latent.loss, latent)
    torch.testing.assert_close(found.image.loss, image)


def test_the_bank_moves_after_the_loss() -> None:
    criterion = both_terms()
    assert criterion.latent_loss is not None
    bank = criterion.latent_loss.centroids
    assert isinstance(bank, MomentumCentroids)
    criterion(*batch())
    first = bank.means.clone()
    criterion(*batch(seed=1))
    assert bank.counts.sum() == 44
    assert not torch.equal(first, bank.means)


def test_second_term_waits_while_its_bank_moves() -> None:
    late, never = both_terms(latent_after=2), SelfSupervisedVarConLoss()
    for seed in range(2):
        x = batch(seed=seed)
        assert torch.equal(late(*x), never(*x))
    x = batch(seed=2)
    terms = late.forward_components(*x)
    assert terms.latent is not None
    torch.testing.assert_close(terms.loss, never(*x) + terms.latent.loss)


def test_only_the_loss_and_only_the_views_carry_a_gradient() -> None:
    x = [view.requires_grad_() for view in batch()]
    teacher = [view.requires_grad_() for view in batch(seed=1)]
    terms = both_terms().forward_components(*x, teacher=teacher)
    assert terms.latent is not None
    assert not terms.image.loss.requires_grad
    assert not terms.latent.loss.requires_grad
    terms.loss.backward()
    assert all(view.grad is not None and view.grad.any() for view in x)
    assert all(view.grad is None for view in teacher)


def steps(criterion: Any, mine: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Loss and gradient of a linear model over three steps, views by ``mine``."""
    found = []
    for seed in range(3):
        weight = torch.eye(D, dtype=torch.float64, requires_grad=True)
        x = [mine(view) for view in batch(seed=seed)]
        loss = criterion(*(v @ weight for v in x), teacher=[v.flip(1) for v in x])
        found += [loss.detach(), torch.autograd.grad(loss, weight)[0]]
    return found


def rank_steps(rank: int, latent: bool) -> list[Tensor]:
    criterion = both_terms() if latent else SelfSupervisedVarConLoss()
    return steps(criterion, lambda view: view.split(SIZES)[rank])


@pytest.mark.parametrize("latent", [False, True])
def test_ddp_gradient_is_that_of_one_process(run_ranks: Run, latent: bool) -> None:
    ranks = run_ranks(rank_steps, 2, latent)
    criterion = both_terms() if latent else SelfSupervisedVarConLoss()
    whole = steps(criterion, lambda view: view)
    for parts, expected in zip(zip(*ranks, strict=True), whole, strict=True):
        mean = torch.stack(parts).mean(dim=0)  # as DDP averages
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)


def one_view_on_one_rank(rank: int) -> str:
    try:
        both_terms()(*batch(4, views=2 - rank))
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def test_a_bad_call_on_one_rank_is_told_on_all(run_ranks: Run) -> None:
    good, bad = run_ranks(one_view_on_one_rank, 2)
    assert "rank 1 of 2 got arguments" in good
    assert "rank 1 of 2: at least two views are needed, got 1" in bad


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    criterion, again = both_terms(latent_after=1), both_terms(latent_after=1)
    for seed in range(3):
        criterion(*batch(seed=seed))
    again.load_state_dict(criterion.state_dict())
    x = batch(seed=9)
    assert torch.equal(criterion(*x), again(*x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_views(dtype: torch.dtype) -> None:
    x = [view.to(dtype).requires_grad_() for view in batch()]
    criterion = SelfSupervisedVarConLoss(pseudo_labels=PseudoLabels(4, D))
    loss = criterion(*x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(v.grad is not None and v.grad.dtype == dtype for v in x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, x: c(x[0]), ValueError, "at least two views are needed, got 1"),
        (lambda c, x: c(x), TypeError, r"views must be tensors, got list"),
        (lambda c, x: c(x[0], x[1][:4]), ValueError, r"one shape \(N, D\)"),
        (lambda c, x: c(x[0][0], x[1][0]), ValueError, r"one shape \(N, D\)"),
        (lambda c, x: c(*x, teacher=x[0]), TypeError, "teacher must be a sequence"),
        (lambda c, x: c(*x, teacher=x[:1]), ValueError, "got 1 of 2"),
        (lambda c, x: c(*(v[:, :5] for v in x)), ValueError, r"\(views \* N, 6\)"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(both_terms(), batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_weight": 0.0}, "latent_weight must be > 0, got 0.0"),
        ({"latent_after": -1}, "latent_after must be >= 0, got -1"),
        ({"latent_temperature": 0.01}, "epsilon must be in"),
        ({"momentum": 1.0}, "momentum must be in"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        both_terms(**options)


def test_a_batch_is_checked_before_training() -> None:
    criterion = both_terms(pseudo_labels=PseudoLabels(100, D))
    criterion.check_batch(images=50, views=2)
    with pytest.raises(ValueError, match="got 100 classes with 98 embeddings"):
        criterion.check_batch(images=49, views=2)
    with pytest.raises(ValueError, match="views must be at least 2"):
        criterion.check_batch(images=50, views=1)
    with pytest.raises(ValueError, match="at least 2 images to tell apart, got 1"):
        SelfSupervisedVarConLoss().check_batch(images=1, views=2)
