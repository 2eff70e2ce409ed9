"""Metrics of predictions, in percent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "TopK",
    "interpolated_map",
    "mean_per_class",
    "ranked_classes",
    "topk_accuracy",
]


class TopK(NamedTuple):
    """Percentage of samples whose class is the first, or among the first five."""

    top1: float
    top5: float


def topk_accuracy(ranked: Tensor, labels: Tensor) -> TopK:
    """Top-1 and top-5 accuracy, in percent.

    Args:
        ranked: (N, R) class ids, best first. With R < 5 columns, ``top5`` is top-R: 100
            by definition where there are five classes or fewer.
        labels: (N,) class ids.

    Raises:
        ValueError: shapes do not match, or there is nothing to average.
    """
    if ranked.ndim != 2 or labels.ndim != 1 or len(ranked) != len(labels):
        raise ValueError(
            "ranked must be (N, R) and labels (N,), got shapes "
            f"{tuple(ranked.shape)} and {tuple(labels.shape)}"
        )
    if ranked.numel() == 0:
        raise ValueError("ranked must hold at least one prediction, got none")
    hits = ranked == labels.to(ranked.device)[:, None]
    return TopK(
        100 * hits[:, 0].double().mean().item(),
        100 * hits[:, :5].any(dim=1).double().mean().item(),
    )


def ranked_classes(scores: Tensor) -> Tensor:
    """The five best classes of each row of ``scores`` (N, C), or all if fewer."""
    return scores.topk(min(5, scores.shape[1]), dim=1).indices


def mean_per_class(ranked: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of each class that occurs in ``labels``, averaged, in percent."""
    hits = (ranked[:, 0].cpu() == labels.cpu()).double()
    counts = labels.cpu().bincount()
    accuracy = labels.cpu().bincount(hits) / counts
    return 100 * accuracy[counts > 0].mean().item()


def interpolated_map(scores: Tensor, labels: Tensor) -> float:
    """Mean average precision of Pascal VOC 2007, in percent.

    The average precision of a class is the mean, over the recalls 0, 0.1, ..., 1, of
    the best precision at that recall or a higher one. Classes without a positive are
    left out of the mean.

    Args:
        scores: (N, C).
        labels: (N, C) of 0 and 1.
    """
    order = scores.cpu().argsort(dim=0, descending=True, stable=True)
    hits = labels.cpu().double().gather(0, order)
    positives = hits.sum(dim=0)
    found = hits.cumsum(dim=0)
    precision = found / torch.arange(1, len(hits) + 1)[:, None]
    recall = found / positives.clamp(min=1)
    best = [
        precision.where(recall >= level / 10 - 1e-9, 0).amax(dim=0)
        for level in range(11)
    ]
    return 100 * torch.stack(best).mean(dim=0)[positives > 0].mean().item()
