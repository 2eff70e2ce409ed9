"""Accuracies of ranked predictions, in percent."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["TopK", "topk_accuracy"]


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
