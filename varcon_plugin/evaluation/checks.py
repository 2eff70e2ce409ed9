"""What every protocol asks of features and labels; errors say what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_features", "check_finite", "check_split"]


def check_finite(features: Tensor, name: str) -> None:
    """Raise ValueError unless all ``features`` (N, D) of split ``name`` are finite."""
    # in parts: isfinite needs several times the memory of what it looks at
    parts = [torch.isfinite(part).all(dim=1) for part in torch.split(features, 4096)]
    bad = ~torch.cat(parts)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} {name} features hold NaN or infinite "
            f"values, first that of image {int(bad.nonzero()[0])}"
        )


def check_features(features: Tensor, labels: Tensor, name: str) -> None:
    """Raise unless ``features`` (N, D) are finite and ``labels`` are their class ids.

    Args:
        features: (N, D), floating.
        labels: (N,), class ids >= 0.
        name: of the split, for the message: ``"train"`` or ``"test"``.

    Raises:
        ValueError: wrong shapes, an empty split, NaN or infinite features, or negative
            labels.
        TypeError: labels are not integers, or features not floating.
    """
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        raise ValueError(
            f"{name}_features must be (N, D) and {name}_labels (N,), got shapes "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if len(features) == 0:
        raise ValueError(f"the {name} split is empty")
    if not features.is_floating_point():
        raise TypeError(f"{name}_features must be floating, got {features.dtype}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}_labels must be integers, got {labels.dtype}")
    check_finite(features, name)
    if int(labels.min()) < 0:
        raise ValueError(
            f"{name}_labels must be class ids >= 0, got {int(labels.min())}"
        )


def check_split(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
) -> None:
    """Raise unless a classifier of the train split can be tested on the test split.

    Raises:
        ValueError: as `check_features`, or the feature dimensions differ, or the test
            split holds classes that the train split does not.
        TypeError: as `check_features`.
    """
    check_features(train_features, train_labels, "train")
    check_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "train_features and test_features must have the same dimension, got "
            f"{train_features.shape[1]} and {test_features.shape[1]}"
        )
    unseen = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if unseen:
        raise ValueError(
            f"the test split holds {len(unseen)} classes that the train split lacks, "
            f"such as {unseen[:5]}: were both read with the same list of classes?"
        )
