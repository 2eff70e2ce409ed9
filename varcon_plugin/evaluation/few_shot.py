"""Few-shot evaluation: classifiers of a handful of labelled images for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from torch import Tensor

from varcon_plugin.evaluation.checks import check_split
from varcon_plugin.evaluation.logistic import fit_logistic

__all__ = ["SHOTS", "FewShotResult", "few_shot"]

SHOTS = (1, 2, 5, 10, 20, 50)


class FewShotResult(NamedTuple):
    """Accuracy of one classifier with one number of shots.

    Attributes:
        classifier: ``"nearest-mean"`` or ``"logistic"``.
        shots: labelled images for each class.
        mean: over the draws, top-1 in percent on the whole test split.
        interval: half the width of its 95 % confidence interval (Student's t).
        draws: accuracy of each draw.
    """

    classifier: str
    shots: int
    mean: float
    interval: float
    draws: tuple[float, ...]


def few_shot(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    seed: int = 0,
) -> list[FewShotResult]:
    """Nearest class mean and logistic regression on ``shots`` images of each class.

    On L2-normalised features; class means are normalised again; the regression has C =
    1 (Tian et al., arXiv 2003.11539), since one image leaves none to choose on. A draw
    depends on ``seed`` and the order of the training labels alone, so all encoders get
    the same images, and contains the images of the draws with fewer shots.

    Args:
        train_features: (M, D).
        train_labels: (M,).
        test_features: (N, D).
        test_labels: (N,).
        shots: labelled images for each class.
        draws: how often images are drawn, >= 2.
        seed: of the draws.

    Raises:
        ValueError: a class has fewer images than shots, fewer than two draws, or as
            `check_split`.
    """
    check_split(train_features, train_labels, test_features, test_labels)
    if draws < 2:
        raise ValueError(f"draws must be >= 2 to give an interval, got {draws}")
    classes, train_ids, counts = torch.unique(
        train_labels, return_inverse=True, return_counts=True
    )
    fewest = int(counts.argmin())
    if not min(shots) >= 1 or max(shots) > counts[fewest]:
        raise ValueError(
            f"shots must be in [1, {int(counts[fewest])}], got {tuple(shots)}: class "
            f"{int(classes[fewest])} has {int(counts[fewest])} training images"
        )
    test_ids = torch.searchsorted(classes, test_labels)
    train, test = (
        F.normalize(x.float(), dim=1) for x in (train_features, test_features)
    )
    accuracies: dict[tuple[str, int], list[float]] = {}
    for draw in range(draws):
        order = shuffled_classes(train_ids, seed, draw)
        for count in shots:
            chosen = torch.cat([members[:count] for members in order]).to(train.device)
            for name, classify in CLASSIFIERS.items():
                predicted = classify(train[chosen], train_ids[chosen], test)
                hits = (predicted == test_ids).double()
                accuracies.setdefault((name, count), []).append(
                    100 * hits.mean().item()
                )
    return [summary(name, count, runs) for (name, count), runs in accuracies.items()]


def shuffled_classes(labels: Tensor, seed: int, draw: int) -> list[Tensor]:
    """The positions of each class in a random order that ``seed`` and ``draw`` fix."""
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(1_000_003 * seed + draw)
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    return list(torch.split(by_class, labels.bincount().tolist()))


def nearest_mean(features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Class whose mean feature is nearest by cosine, for each row of ``test``."""
    means = features.new_zeros(int(labels.max()) + 1, features.shape[1])
    means = F.normalize(means.index_add(0, labels, features), dim=1)
    return (test @ means.T).argmax(dim=1)


def logistic(features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Class by logistic regression with C = 1."""
    return fit_logistic(features, labels).scores(test).argmax(dim=1)


CLASSIFIERS = {"nearest-mean": nearest_mean, "logistic": logistic}


def summary(classifier: str, shots: int, draws: Sequence[float]) -> FewShotResult:
    """Mean and 95 % interval of the accuracies of several draws."""
    values = torch.tensor(draws, dtype=torch.float64)
    quantile = float(student_t.ppf(0.975, len(draws) - 1))
    interval = quantile * values.std().item() / len(draws) ** 0.5
    return FewShotResult(
        classifier, shots, values.mean().item(), interval, tuple(draws)
    )
