"""Weighted k-nearest-neighbour classification of frozen features.

Cosine similarity, each neighbour votes with exp(similarity / temperature): the protocol
of Wu et al. (arXiv 1805.01978, section 3.4), DINO and lightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from varcon_plugin.evaluation.checks import check_features, check_split
from varcon_plugin.evaluation.metrics import TopK, topk_accuracy

__all__ = [
    "Neighbors",
    "knn_accuracy",
    "knn_predict",
    "knn_vote",
    "merge_neighbors",
    "nearest_neighbors",
]

CHUNK_SIZE = 4096


class Neighbors(NamedTuple):
    """The nearest training samples of each test sample, nearest first.

    Attributes:
        similarity: (N, k), cosine.
        label: (N, k), their classes.
    """

    similarity: Tensor
    label: Tensor


def nearest_neighbors(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Neighbors:
    """The ``k`` nearest of ``train_features`` (or all of them, if fewer).

    Never more than ``chunk_size`` squared similarities exist at a time, and chunks of
    training features are moved to the device of ``test_features`` one by one, each
    once. Among equal similarities at the k-th place the choice is arbitrary.

    Args:
        train_features: (M, D), of any length: they are normalised inside.
        train_labels: (M,).
        test_features: (N, D), likewise.
        k: number of neighbours.
        chunk_size: rows of either set compared at once; has no effect on the result.
    """
    if k < 1 or chunk_size < 1:
        raise ValueError(f"k and chunk_size must be >= 1, got {k} and {chunk_size}")
    device = test_features.device
    queries = [
        F.normalize(part.float(), dim=1)
        for part in torch.split(test_features, chunk_size)
    ]
    found: list[Neighbors | None] = [None] * len(queries)
    for keys, labels in zip(
        torch.split(train_features, chunk_size),
        torch.split(train_labels, chunk_size),
        strict=True,
    ):
        keys = F.normalize(keys.to(device).float(), dim=1)
        labels = labels.to(device, torch.int64)
        for i, query in enumerate(queries):
            similarity, index = (query @ keys.T).topk(min(k, len(keys)), dim=1)
            chunk, best = Neighbors(similarity, labels[index]), found[i]
            found[i] = chunk if best is None else merge_neighbors([best, chunk], k)
    parts = [part for part in found if part is not None]
    return Neighbors(*(torch.cat(part) for part in zip(*parts, strict=True)))


def merge_neighbors(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """The ``k`` nearest among those found in disjoint parts of the training set."""
    similarity = torch.cat([part.similarity for part in parts], dim=1)
    label = torch.cat([part.label for part in parts], dim=1)
    similarity, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return Neighbors(similarity, label.gather(1, index))


def knn_vote(
    neighbors: Neighbors,
    num_classes: int,
    *,
    k: int,
    temperature: float,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Classes ranked by the votes of the first ``k`` of ``neighbors``.

    Returns:
        (N, min(5, num_classes)) class ids, best first. Classes with equal votes, such
        as those without any, come in ascending order.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if not 1 <= k <= neighbors.label.shape[1]:
        raise ValueError(
            f"k must be in [1, {neighbors.label.shape[1]}], the neighbours at hand, "
            f"got {k}"
        )
    ranked = []
    for similarity, label in zip(
        torch.split(neighbors.similarity[:, :k], chunk_size),
        torch.split(neighbors.label[:, :k], chunk_size),
        strict=True,
    ):
        # relative to the nearest: the same ranking, and exp cannot overflow
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(weight), num_classes).scatter_add_(
            1, label, weight
        )
        order = votes.argsort(dim=1, descending=True, stable=True)
        ranked.append(order[:, : min(5, num_classes)])
    return torch.cat(ranked)


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Classify ``test_features`` by their nearest neighbours.

    Args:
        train_features: (M, D), the bank; normalised inside.
        train_labels: (M,), integers >= 0.
        test_features: (N, D); the computation happens on their device.
        k: number of neighbours that vote, at most M.
        temperature: the vote of a neighbour is exp(cosine / temperature).
        num_classes: None is the largest training label + 1.
        chunk_size: see `nearest_neighbors`.

    Returns:
        (N, min(5, num_classes)) class ids, best first; see `knn_vote`.

    Raises:
        ValueError: an empty split, NaN features, or ``k`` larger than the bank.
    """
    check_features(train_features, train_labels, "train")
    check_features(test_features, torch.zeros(len(test_features)).long(), "test")
    check_bank(k, len(train_features))
    if num_classes is None:
        num_classes = int(train_labels.max()) + 1
    neighbors = nearest_neighbors(
        train_features, train_labels, test_features, k, chunk_size=chunk_size
    )
    return knn_vote(
        neighbors, num_classes, k=k, temperature=temperature, chunk_size=chunk_size
    )


def check_bank(k: int, size: int) -> None:
    """Raise unless ``k`` neighbours can be found among ``size`` training samples."""
    if not 1 <= k <= size:
        raise ValueError(
            f"k must be in [1, {size}], the number of training samples, got {k}"
        )


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperatures: Sequence[float] = (0.07, 0.1),
    chunk_size: int = CHUNK_SIZE,
) -> dict[tuple[int, float], TopK]:
    """Top-1 and top-5 accuracy in percent for each (k, temperature).

    The neighbours are searched once, for the largest k.

    Raises:
        ValueError: as `knn_predict`, or test classes that the train split lacks.
    """
    check_split(train_features, train_labels, test_features, test_labels)
    check_bank(max(ks), len(train_features))
    num_classes = int(train_labels.max()) + 1
    neighbors = nearest_neighbors(
        train_features, train_labels, test_features, max(ks), chunk_size=chunk_size
    )
    return {
        (k, temperature): topk_accuracy(
            knn_vote(neighbors, num_classes, k=k, temperature=temperature), test_labels
        )
        for k in ks
        for temperature in temperatures
    }
