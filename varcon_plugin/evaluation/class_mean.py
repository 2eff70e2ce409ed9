"""The class-mean classifier: no probe, nothing to fit but a mean for each class."""

from __future__ import annotations

import torch
from torch import Tensor

from varcon_plugin.evaluation.checks import check_split
from varcon_plugin.evaluation.metrics import ranked_classes
from varcon_plugin.functional import normalize

__all__ = ["class_mean_predict"]


def class_mean_predict(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> Tensor:
    """Classes of the test rows by cosine similarity to the class means.

    Rows are normalised, averaged over each class of the training split, and the means
    normalised again, as the references of `varcon_plugin.VarConLoss` are. On the
    embeddings of a projection head it is the classifier that the loss trains
    ("Neural Collapse by Design", https://arxiv.org/abs/2605.20302).

    Args:
        train: (M, D), features or embeddings, of any length.
        train_labels: (M,) class ids.
        test: (N, D), likewise.
        test_labels: (N,), for the checks alone.

    Returns:
        (N, min(5, C)) classes, best first; those without a training image come last.

    Raises:
        ValueError: an empty split, NaN, or test classes that the train split lacks.
    """
    check_split(train, train_labels, test, test_labels)
    rows = normalize(train.float())
    counts = train_labels.bincount()
    sums = rows.new_zeros(len(counts), rows.shape[1])
    sums.index_add_(0, train_labels, rows)
    scores = normalize(test.float()) @ normalize(sums).T
    return ranked_classes(scores.masked_fill(counts == 0, -torch.inf))
