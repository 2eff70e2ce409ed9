"""Linear evaluation of frozen features, regularisation chosen on training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from varcon_plugin.evaluation.checks import check_split
from varcon_plugin.evaluation.logistic import (
    LinearClassifier,
    fit_logistic,
    fit_scale,
)
from varcon_plugin.evaluation.metrics import ranked_classes, topk_accuracy

__all__ = [
    "REGULARISATIONS",
    "LinearResult",
    "Metric",
    "Selection",
    "linear_probe",
    "select_and_fit",
]

REGULARISATIONS = tuple(float(c) for c in np.logspace(-6, 3, 10))
Metric: TypeAlias = Callable[[Tensor, Tensor], float]


class LinearResult(NamedTuple):
    """What `linear_probe` found.

    Attributes:
        top1: test accuracy in percent.
        top5: likewise; see `topk_accuracy`.
        C: the inverse regularisation strength chosen, as in scikit-learn.
        validation_top1: accuracy in percent on the held-out part, for each C tried.
        ranked: (N, min(5, classes)) predicted classes of the test samples, best first.
        classifier: takes features as they come from the encoder.
    """

    top1: float
    top5: float
    C: float
    validation_top1: dict[float, float]
    ranked: Tensor
    classifier: LinearClassifier


class Selection(NamedTuple):
    """A classifier whose regularisation was chosen on held-out training images.

    Attributes:
        classifier: fitted on all of them; takes features as the encoder gives them.
        C: the best of those tried, the smaller one of equals.
        validation: the metric on the held-out images, for each C tried.
    """

    classifier: LinearClassifier
    C: float
    validation: dict[float, float]


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    cs: Sequence[float] = REGULARISATIONS,
    validation_share: float = 0.2,
) -> LinearResult:
    """Linear evaluation on cached features: multinomial logistic regression.

    Features are centred and divided by one number (`fit_scale`). The regularisation is
    chosen by top-1 accuracy on a stratified part of the training set, then a classifier
    is fitted on the whole training set. The test set is looked at once, at the end.

    Args:
        train_features: (M, D), of the frozen encoder, not normalised.
        train_labels: (M,).
        test_features: (N, D).
        test_labels: (N,).
        seed: of the held-out part.
        cs: inverse regularisation strengths to choose from.
        validation_share: of each class held out; classes of one image are not.

    Raises:
        ValueError: an empty split, NaN features, test classes that the train split
            lacks, or no class with two images.
    """
    check_split(train_features, train_labels, test_features, test_labels)
    classifier, c, validation = select_and_fit(
        train_features,
        train_labels,
        metric=lambda scores, labels: (
            topk_accuracy(ranked_classes(scores), labels).top1
        ),
        held_out=stratified_mask(train_labels, validation_share, seed),
        cs=cs,
    )
    ranked = ranked_classes(classifier.scores(test_features))
    accuracy = topk_accuracy(ranked, test_labels)
    return LinearResult(*accuracy, c, validation, ranked, classifier)


def top1(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of ``scores`` (N, C) in percent."""
    return topk_accuracy(ranked_classes(scores), labels).top1


def select_and_fit(
    features: Tensor,
    labels: Tensor,
    *,
    metric: Metric,
    held_out: Tensor,
    cs: Sequence[float] = REGULARISATIONS,
) -> Selection:
    """Choose a regularisation on part of the training images, then fit on all of them.

    Args:
        features: (N, D), of the training images.
        labels: (N,) class ids, or (N, C) of 0 and 1 (one logistic regression each).
        metric: of scores (M, C) and labels; the larger, the better.
        held_out: (N,) bool, the images to choose on.
        cs: inverse regularisation strengths; each solution is the start of the next.
    """
    num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    scale = fit_scale(features[~held_out])
    fit, unseen = scale(features[~held_out]), scale(features[held_out])
    validation: dict[float, float] = {}
    classifier = None
    for c in sorted(cs):
        classifier = fit_logistic(
            fit, labels[~held_out], C=c, num_classes=num_classes, start=classifier
        )
        validation[c] = metric(classifier.scores(unseen), labels[held_out])
    best = max(validation, key=lambda c: validation[c])
    scale = fit_scale(features)
    classifier = fit_logistic(scale(features), labels, C=best, num_classes=num_classes)
    return Selection(scale.unscaled(classifier), best, validation)


def stratified_mask(labels: Tensor, share: float, seed: int) -> Tensor:
    """(N,) bool: a random ``share`` of each class, at least one image where it has two.

    Raises:
        ValueError: no class has two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must be in (0, 1), got {share}")
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0].cpu()
        size = min(max(1, round(share * len(members))), len(members) - 1)
        mask[members[torch.randperm(len(members), generator=generator)[:size]]] = True
    if not mask.any():
        raise ValueError(
            "no class of the train split has two images, so none can be held out to "
            "choose the regularisation: use fit_logistic with a C of your own"
        )
    return mask.to(labels.device)
