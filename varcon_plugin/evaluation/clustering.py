"""Hierarchical clustering of test features, without their labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from varcon_plugin.evaluation.checks import check_features

__all__ = ["NMI_AVERAGE", "ClusteringResult", "class_linkage", "cluster", "ward"]

NMI_AVERAGE = "arithmetic"


class ClusteringResult(NamedTuple):
    """Agreement of clusters and classes.

    Attributes:
        accuracy: percent of samples in the cluster matched to their class, for the best
            one-to-one matching (Hungarian).
        nmi: normalised mutual information, over the arithmetic mean of the entropies,
            times 100.
        ari: adjusted Rand index, 0 for random clusters, times 100.
        purity: percent of samples in the majority class of their cluster.
        clusters: how many, the number of classes that occur.
        samples: how many were clustered.
    """

    accuracy: float
    nmi: float
    ari: float
    purity: float
    clusters: int
    samples: int


def cluster(
    features: Tensor, labels: Tensor, *, max_samples: int = 10_000, seed: int = 0
) -> ClusteringResult:
    """Ward linkage of L2-normalised ``features``, cut at the number of classes.

    Args:
        features: (N, D), of the test split.
        labels: (N,), which the clustering does not see.
        max_samples: of more, a random part is clustered: Ward needs memory and time
            that grow with N^2 (some 2.5 GB for 10,000).
        seed: of that part.

    Raises:
        ValueError: see `check_features`; or fewer than two classes.
    """
    check_features(features, labels, "test")
    if len(features) > max_samples:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(features), generator=generator)[:max_samples]
        features, labels = features[chosen], labels[chosen]
    classes = len(torch.unique(labels))
    if classes < 2:
        raise ValueError(f"clustering needs at least two classes, got {classes}")
    found = fcluster(ward(features), classes, criterion="maxclust")
    return agreement(labels.cpu().numpy(), found)


def agreement(labels: Any, clusters: Any) -> ClusteringResult:
    """How well ``clusters`` (N,) fit ``labels`` (N,)."""
    table = contingency_matrix(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    nmi = normalized_mutual_info_score(labels, clusters, average_method=NMI_AVERAGE)
    return ClusteringResult(
        accuracy=100 * float(table[rows, columns].sum()) / len(labels),
        nmi=100 * float(nmi),
        ari=100 * float(adjusted_rand_score(labels, clusters)),
        purity=100 * float(table.max(axis=0).sum()) / len(labels),
        clusters=table.shape[1],
        samples=len(labels),
    )


def ward(features: Tensor) -> Any:
    """Scipy's linkage matrix of the L2-normalised rows of ``features``."""
    unit = F.normalize(features.double().cpu(), dim=1)
    square = (2 - 2 * (unit @ unit.T)).clamp_(min=0)
    distance = square.sqrt_().fill_diagonal_(0)
    distance = (distance + distance.T) / 2  # the product may differ in its last bits
    return linkage(squareform(distance.numpy(), checks=False), method="ward")


def class_linkage(features: Tensor, labels: Tensor) -> tuple[Any, list[int]]:
    """Linkage matrix of the class means, and the classes in its order.

    Each is the mean of the L2-normalised features of a class that occurs.
    """
    present, ids = torch.unique(labels, return_inverse=True)
    unit = F.normalize(features.double(), dim=1)
    means = unit.new_zeros(len(present), unit.shape[1]).index_add(0, ids, unit)
    classes: list[int] = present.tolist()
    return ward(means), classes
