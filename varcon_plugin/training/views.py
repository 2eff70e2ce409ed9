"""Views of several sizes: batches for the encoder, rows for the loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["by_size", "repeat_rows"]


def by_size(views: Sequence[Tensor]) -> list[Tensor]:
    """Views (N, C, H, W), those of one size that stand together in one batch.

    The batches one after the other hold the rows in the order of the views.
    """
    groups = itertools.groupby(views, key=lambda view: view.shape[1:])
    return [torch.cat(list(group)) for _, group in groups]


def repeat_rows(rows: Tensor, total: int) -> Tensor:
    """The rows (M, D) of some views again and again, ``total`` in all.

    Rows of a view are in the order of the images: of M / N views of N images, each of
    the others gets the rows of one of them.
    """
    return rows.repeat(-(-total // len(rows)), 1)[:total]
