"""Logistic regression with scikit-learn's objective, on any device and any size."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

__all__ = ["LinearClassifier", "Scale", "fit_logistic", "fit_scale"]

CHUNK_SIZE = 65536
Array: TypeAlias = npt.NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


class LinearClassifier(NamedTuple):
    """scores = features @ weight.T + bias.

    Attributes:
        weight: (C, D).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) logits."""
        return features.to(self.weight) @ self.weight.T + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    C: float = 1.0,
    num_classes: int | None = None,
    start: LinearClassifier | None = None,
    max_iter: int = 5000,
    tol: float = 1e-6,
    chunk_size: int = CHUNK_SIZE,
) -> LinearClassifier:
    """Logistic regression by L-BFGS, with scikit-learn's objective.

    Multinomial for class ids, one regression for each class for labels of 0 and 1.
    Minimises ``mean(cross_entropy) + |weight|^2 / (2 C N)``; the bias is free. scipy
    runs L-BFGS, torch computes value and gradient on the device of ``features``, in
    float64 for float64 features and in float32 otherwise.

    Args:
        features: (N, D).
        labels: (N,) class ids, all < ``num_classes``; or (N, C) of 0 and 1.
        C: inverse regularisation strength, > 0.
        num_classes: None is the largest label + 1.
        start: where to start from, such as the solution for a neighbouring C.
        max_iter: of L-BFGS.
        tol: largest absolute gradient entry to stop at. At scikit-learn's 1e-4,
            rounding errors of the features already change accuracies.
        chunk_size: rows of ``features`` used at once; no effect on the result.
    """
    if not C > 0:
        raise ValueError(f"C must be > 0, got {C}")
    if num_classes is None:
        num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    count, dim = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)

    def unpack(flat: Array) -> LinearClassifier:
        packed = torch.from_numpy(flat).to(features.device, dtype)
        packed = packed.view(num_classes, dim + 1)
        return LinearClassifier(packed[:, :dim], packed[:, dim])

    def objective(flat: Array) -> tuple[float, Array]:
        classifier = unpack(flat)
        value, grad = cross_entropy(classifier, features, labels, chunk_size)
        weight = classifier.weight / (C * count)
        grad[:, :dim] += weight
        value += 0.5 * (weight * classifier.weight).sum().item()
        return value, to_numpy(grad)

    if start is None:
        initial = np.zeros(num_classes * (dim + 1))
    else:
        initial = to_numpy(torch.cat([start.weight, start.bias[:, None]], dim=1))
    solution = minimize(
        objective,
        initial,
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": max_iter, "maxls": 50, "gtol": tol, "ftol": 64 * EPS},
    )
    return unpack(solution.x)


def cross_entropy(
    classifier: LinearClassifier, features: Tensor, labels: Tensor, chunk_size: int
) -> tuple[float, Tensor]:
    """Mean cross-entropy, and its gradient by [weight | bias], (C, D + 1)."""
    weight = classifier.weight
    grad = weight.new_zeros(weight.shape[0], weight.shape[1] + 1)
    value = 0.0
    for x, y in zip(
        torch.split(features, chunk_size), torch.split(labels, chunk_size), strict=True
    ):
        x, y = x.to(weight), y.to(weight.device)
        scores = classifier.scores(x)
        if y.ndim == 2:
            target = y.to(scores)
            losses = F.binary_cross_entropy_with_logits(
                scores, target, reduction="none"
            )
            error = scores.sigmoid() - target
        else:
            losses = F.cross_entropy(scores, y.long(), reduction="none")
            error = scores.softmax(dim=1)
            error.scatter_add_(1, y.long()[:, None], -torch.ones_like(error[:, :1]))
        value += losses.double().sum().item()
        grad[:, :-1] += error.T @ x
        grad[:, -1] += error.sum(dim=0)
    return value / len(features), grad / len(features)


def to_numpy(tensor: Tensor) -> Array:
    """``tensor`` as scipy's optimiser wants it: flat, float64, on the host."""
    flat: Array = tensor.flatten().double().cpu().numpy()
    return flat


class Scale(NamedTuple):
    """(features - mean) / rms."""

    mean: Tensor
    rms: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scaled ``features`` (N, D)."""
        return (features - self.mean.to(features)) / self.rms.to(features)

    def unscaled(self, classifier: LinearClassifier) -> LinearClassifier:
        """Of a classifier of scaled features, the one that takes them as they are."""
        weight = classifier.weight / self.rms.to(classifier.weight)
        return LinearClassifier(weight, classifier.bias - weight @ self.mean.to(weight))


def fit_scale(features: Tensor) -> Scale:
    """Centre, and one number to divide by: the root of the mean variance.

    This turns or stretches nothing, and makes a regularisation strength mean the same
    for encoders whose features differ in length.
    """
    mean = features.double().mean(dim=0)
    rms = features.double().var(dim=0, correction=0).mean().sqrt()
    return Scale(mean, torch.where(rms > 0, rms, 1))
