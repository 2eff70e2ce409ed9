"""Linear transfer to another dataset, with the metric that is customary there.

SimCLR's protocol (arXiv 2002.05709, B.8), which SupCon follows: L2-regularised logistic
regression by L-BFGS on features of the centre crop, no augmentation, the regularisation
out of 45 values chosen on the validation split, then a fit on training and validation
images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from varcon_plugin.evaluation.checks import check_finite, check_split
from varcon_plugin.evaluation.linear import (
    Metric,
    select_and_fit,
    stratified_mask,
    top1,
)
from varcon_plugin.evaluation.metrics import (
    interpolated_map,
    mean_per_class,
    ranked_classes,
)

__all__ = ["MetricName", "TransferResult", "customary_metric", "transfer"]

MetricName: TypeAlias = Literal["top1", "mean_per_class", "map11"]
GRID = tuple(float(c) for c in np.logspace(-5, 6, 45))  # 1 / lambda of 1e-6 to 1e5
METRICS: dict[MetricName, Metric] = {
    "top1": top1,
    "mean_per_class": lambda scores, y: mean_per_class(ranked_classes(scores), y),
    "map11": interpolated_map,
}
PER_CLASS = ("aircraft", "pet", "caltech", "flower")


class TransferResult(NamedTuple):
    """Linear transfer to one dataset.

    Attributes:
        metric: what ``value`` is.
        value: on the test split, in percent.
        C: the inverse regularisation strength chosen.
    """

    metric: MetricName
    value: float
    C: float


def customary_metric(name: str, labels: Tensor) -> MetricName:
    """The metric of a dataset, as in SimCLR's table of twelve.

    11-point mAP where an image has several labels (VOC 2007), mean per class for
    Aircraft, Pets, Caltech-101 and Flowers, by ``name``, top-1 otherwise.
    """
    if labels.ndim == 2:
        return "map11"
    lowered = name.lower()
    return "mean_per_class" if any(n in lowered for n in PER_CLASS) else "top1"


def transfer(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None = None,
    *,
    metric: MetricName = "top1",
    cs: Sequence[float] = GRID,
    seed: int = 0,
) -> TransferResult:
    """Fit on ``train`` (and ``validation``), report ``metric`` on ``test``.

    Args:
        train: features (M, D), and labels: (M,) class ids, or (M, C) of 0 and 1.
        test: likewise.
        validation: likewise; None holds out a fifth of each class of ``train``.
        metric: also what the regularisation is chosen by.
        cs: inverse regularisation strengths to choose from.
        seed: of the held-out part, where there is no ``validation``.

    Raises:
        ValueError: an unknown metric or one that does not fit the labels, or as
            `check_split`.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    splits = {"train": train, "test": test}
    if validation is not None:
        splits["validation"] = validation
    for name, (features, labels) in splits.items():
        if (labels.ndim == 2) != (metric == "map11"):
            raise ValueError(
                f"metric {metric!r} does not fit {name} labels of shape "
                f"{tuple(labels.shape)}: map11 is for several labels an image"
            )
        if labels.ndim == 2:
            check_finite(features, name)
        else:
            check_split(*train, features, labels)
    if validation is None:
        features, labels = train
        held_out = random_mask(labels, seed)
    else:
        features, labels = (
            torch.cat(parts) for parts in zip(train, validation, strict=True)
        )
        held_out = torch.arange(len(labels)) >= len(train[1])
    selection = select_and_fit(
        features, labels, metric=METRICS[metric], held_out=held_out, cs=cs
    )
    value = METRICS[metric](selection.classifier.scores(test[0]), test[1])
    return TransferResult(metric, value, selection.C)


def random_mask(labels: Tensor, seed: int) -> Tensor:
    """A fifth of the images: of each class, where an image has one."""
    if labels.ndim == 1:
        return stratified_mask(labels, 0.2, seed)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[torch.randperm(len(labels), generator=generator)[: len(labels) // 5]] = True
    return mask
