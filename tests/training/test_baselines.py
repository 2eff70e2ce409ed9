"""The losses VarCon is compared with: values, and the same contract across ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from varcon_plugin.functional import class_sums, normalize, varcon_terms
from varcon_plugin.training.baselines import (
    MetricLearningLoss,
    PrototypeLoss,
    find_loss,
)

SIZES = (5, 11)
D = 6
PROXIES = {"num_classes": 4, "embedding_size": D}
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "SupCon": lambda: MetricLearningLoss("SupConLoss", temperature=0.1),
    "triplet": lambda: MetricLearningLoss("TripletMarginLoss"),
    "multi-similarity": lambda: MetricLearningLoss("MultiSimilarityLoss"),
    "proxy NCA": lambda: MetricLearningLoss("ProxyNCALoss", **PROXIES),
    "ArcFace": lambda: MetricLearningLoss("ArcFaceLoss", **PROXIES),
    "prototypes": lambda: PrototypeLoss(0.1),
    "prototypes, static": lambda: PrototypeLoss(0.1, num_classes=7),
}


def batch(samples: int = sum(SIZES)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (samples,), generator=generator)
    labels[-1] = 3
    return images, labels


class Model(nn.Module):
    """A network and its loss in one module, as mmpretrain has them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(D, D)
        self.loss = LOSSES[name]()
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.network(images), labels)
        return loss


def step(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The value and the gradient of every parameter, those of the loss included."""
    loss = model(images, labels)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"value": loss.detach(), **gradients}


def ranks_step(rank: int) -> dict[str, dict[str, Tensor]]:
    images, labels = batch()
    start = sum(SIZES[:rank])
    rows = slice(start, start + SIZES[rank])
    results = {}
    for name in LOSSES:
        model = DistributedDataParallel(Model(name))
        results[name] = step(model, images[rows], labels[rows])
    return results


@pytest.fixture(scope="module")
def witness() -> dict[str, dict[str, Tensor]]:
    return {name: step(Model(name), *batch()) for name in LOSSES}


def test_two_ranks_train_as_one(
    run_ranks: Callable[..., list[Any]], witness: dict[str, dict[str, Tensor]]
) -> None:
    ranks = run_ranks(ranks_step, 2)
    for name, expected in witness.items():
        assert all(value.abs().sum() > 0 for value in expected.values()), name
        value = sum(rank[name].pop("value") for rank in ranks) / 2
        close(value, expected.pop("value"), name)
        for parameter, gradient in expected.items():
            for rank in ranks:
                close(rank[name][f"module.{parameter}"], gradient, name)


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-12, msg=lambda text: f"{name}: {text}"
    )


def wrong_rank(rank: int) -> str:
    images, labels = batch()
    labels = labels.double() if rank else labels
    try:
        MetricLearningLoss("SupConLoss")(images, labels)
    except (TypeError, RuntimeError) as error:
        return str(error)
    return "no error"


def test_a_bad_batch_on_one_rank_is_told_on_all(
    run_ranks: Callable[..., list[Any]],
) -> None:
    good, bad = run_ranks(wrong_rank, 2)
    assert "rank 1 of 2" in good
    assert "labels must be integer class ids" in bad


def test_supcon_is_the_mean_over_positives() -> None:
    images, labels = batch()
    unit = F.normalize(images)
    others = ~torch.eye(len(labels), dtype=torch.bool)
    logits = (unit @ unit.T / 0.1).masked_fill(~others, -torch.inf)
    log_p = logits.log_softmax(dim=1)
    losses = []
    for i, label in enumerate(labels):
        positives = (labels == label) & others[i]
        if positives.any():
            losses.append(-log_p[i, positives].mean())
    actual = MetricLearningLoss("SupConLoss", temperature=0.1)(images, labels)
    torch.testing.assert_close(actual, torch.stack(losses).mean())


@pytest.mark.parametrize("num_classes", [None, 9])
def test_prototypes_are_varcon_with_a_hard_target(num_classes: int | None) -> None:
    images, labels = batch()
    unit = normalize(images)
    centroids = normalize(class_sums(unit, labels, 4)[0])
    terms = varcon_terms(unit, labels, centroids, temperature=0.1, epsilon=0.0)
    actual = PrototypeLoss(0.1, num_classes=num_classes)(images, labels)
    torch.testing.assert_close(actual, 2 * terms.nll.mean())
    # at a low temperature the soft target is one-hot, and VarCon the same loss
    cold = varcon_terms(unit, labels, centroids, temperature=0.01, epsilon=0.0)
    actual = PrototypeLoss(0.01, num_classes=num_classes)(images, labels)
    torch.testing.assert_close(actual, cold.loss.mean())


def test_half_precision_is_computed_in_single() -> None:
    images, labels = batch()
    for loss in (MetricLearningLoss("SupConLoss"), PrototypeLoss()):
        low = images.to(torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(low, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert low.grad is not None
        assert low.grad.dtype == torch.bfloat16


def test_losses_that_cannot_work_here_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no loss 'SupCon'; near it: SupConLoss"):
        find_loss("SupCon")
    for name in ("CrossBatchMemory", "MultipleLosses", "VICRegLoss"):
        with pytest.raises(ValueError, match=f"{name} .*is not supported"):
            MetricLearningLoss(name)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        PrototypeLoss(0.0)
    with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes\)"):
        PrototypeLoss(num_classes=2)(*batch())
    with pytest.raises(TypeError, match="labels must be integer"):
        MetricLearningLoss("SupConLoss")(batch()[0], batch()[0][:, 0])
