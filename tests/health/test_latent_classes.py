"""Measures of latent classes, and each failure sign provoked in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from varcon_plugin import PseudoLabels, SelfSupervisedVarConLoss
from varcon_plugin.health.latent_classes import (
    LatentClassMonitor,
    classes_used,
    latent_failure_sign,
    mutual_information,
    usage_entropy,
)

Run = Callable[..., list[Any]]
D = 8


def make(classes: int = 4, **options: Any) -> SelfSupervisedVarConLoss:
    return SelfSupervisedVarConLoss(pseudo_labels=PseudoLabels(classes, D, **options))


def watch(
    criterion: SelfSupervisedVarConLoss, batches: list[Tensor], noise: float = 0.1
) -> dict[str, float]:
    """What the monitor reports of ``batches`` of images (N, D), two views each."""
    monitor = LatentClassMonitor(criterion)
    for x in batches:
        view = x + noise * torch.randn_like(x)
        monitor.add(criterion.forward_components(x, view))
    return monitor.report()


def clusters(images: int, number: int = 4) -> Tensor:
    return torch.eye(D)[torch.arange(images) % number] + 0.05 * torch.randn(images, D)


def test_usage() -> None:
    counts = torch.tensor([4.0, 4.0, 0.0, 4.0, 4.0])
    assert classes_used(counts) == 4
    assert float(usage_entropy(counts)) == pytest.approx(math.log(4))
    assert float(usage_entropy(torch.tensor([7.0, 0.0]))) == 0


def test_mutual_information_is_scikit_learns() -> None:
    first, second = torch.randint(7, (200,)), 10 * torch.randint(3, (200,)) - 4
    for one, two in ((first, second), (first, first), (first, first // 2)):
        expected = normalized_mutual_info_score(one.numpy(), two.numpy())
        assert mutual_information(one, two) == pytest.approx(expected, abs=1e-12)
    single = torch.zeros(200)
    assert mutual_information(single, first) == 0
    assert mutual_information(single, single) == 1


def test_a_healthy_run_shows_its_classes_and_no_sign() -> None:
    torch.manual_seed(3)
    criterion = make(iterations=10)
    batches = [clusters(40) for _ in range(30)]
    watch(criterion, batches[:20])
    values = watch(criterion, batches[20:])
    assert values["latent_used"] == values["latent_classes"] == 4
    assert values["latent_agreement"] > 0.95
    assert values["latent_usage_entropy"] == pytest.approx(math.log(4), abs=0.1)
    assert values["latent_seen"] == 800
    assert latent_failure_sign(values) is None


def test_all_in_one_class_is_told() -> None:
    """Equal embeddings have one assignment, however it is balanced."""
    values = watch(make(), [torch.ones(20, D)] * 3, noise=0)
    sign = latent_failure_sign(values)
    assert sign is not None
    assert sign.name == "one_latent_class"
    assert "100% of a batch is in one latent class of 4" in sign.message


def test_dead_classes_are_told() -> None:
    """Three images over and over cannot feed thirty classes."""
    values = watch(make(classes=30), [torch.eye(D)[torch.arange(20) % 3]] * 10, noise=0)
    sign = latent_failure_sign(values)
    assert sign is not None
    assert sign.name == "dead_classes"
    assert "of 30 latent classes are dead" in sign.message


def test_a_loss_that_stays_at_chance_is_told() -> None:
    """Views that have nothing in common cannot say each other's class."""
    criterion = make(classes=8)
    monitor = LatentClassMonitor(criterion)
    for _ in range(20):
        monitor.add(criterion.forward_components(*torch.randn(2, 30, D)))
    values = monitor.report()
    sign = latent_failure_sign(values, progress=0.5)
    assert sign is not None
    assert sign.name == "latent_plateau"
    assert "about 2 ln C" in sign.message
    assert latent_failure_sign(values, progress=0.01) is None


def test_a_sign_is_told_once_after_patience() -> None:
    monitor = LatentClassMonitor(make(), patience=2)
    values = watch(make(), [torch.ones(20, D)] * 3, noise=0)
    assert monitor.news(values) is None
    again = LatentClassMonitor(make(), patience=2)
    again.load_state_dict(monitor.state_dict())
    told = again.news(values)
    assert told is not None
    assert told.name == "one_latent_class"
    assert again.news(values) is None


def test_without_pseudo_labels_there_is_nothing_to_watch() -> None:
    with pytest.raises(ValueError, match="give SelfSupervisedVarConLoss pseudo_labels"):
        LatentClassMonitor(SelfSupervisedVarConLoss())


def rank_report(rank: int) -> dict[str, float]:
    criterion = make().double()
    monitor = LatentClassMonitor(criterion)
    x = torch.randn(2, 11, D, generator=torch.Generator().manual_seed(0)).double()
    monitor.add(criterion.forward_components(*x.split((3, 8), dim=1)[rank]))
    return monitor.report()


def test_ranks_report_the_whole_batch(run_ranks: Run) -> None:
    criterion = make().double()
    monitor = LatentClassMonitor(criterion)
    x = torch.randn(2, 11, D, generator=torch.Generator().manual_seed(0)).double()
    monitor.add(criterion.forward_components(*x))
    whole = monitor.report()
    for values in run_ranks(rank_report, 2):
        for name in whole.keys() - {"latent_largest_share"}:  # that is of each rank
            assert values[name] == pytest.approx(whole[name])
