"""Linear evaluation of frozen features: multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from varcon_plugin.evaluation.checks import check_split
from varcon_plugin.evaluation.metrics import topk_accuracy

__all__ = ["LinearClassifier", "LinearResult", "fit_logistic", "linear_probe"]

CHUNK_SIZE = 65536
Array: TypeAlias = npt.NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
GRID = tuple(float(c) for c in np.logspace(-6, 3, 10))


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


class LinearResult(NamedTuple):
    """What `linear_probe` found.

    Attributes:
        top1: test accuracy in percent.
        top5: likewise; see `topk_accuracy`.
        C: the inverse regularisation strength chosen, as in scikit-learn.
        validation_top1: accuracy in percent on the held-out part, for each C tried.
        ranked: (N, min(5, classes)) predicted classes of the test samples, best first.
    """

    top1: float
    top5: float
    C: float
    validation_top1: dict[float, float]
    ranked: Tensor


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    C: float = 1.0,
    num_classes: int | None = None,
    start: LinearClassifier | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
    chunk_size: int = CHUNK_SIZE,
) -> LinearClassifier:
    """Multinomial logistic regression by L-BFGS, scikit-learn's objective.

    Minimises ``mean(cross_entropy) + |weight|^2 / (2 C N)``; the bias is free. scipy
    runs L-BFGS, torch computes value and gradient on the device of ``features``, in
    float64 for float64 features and in float32 otherwise.

    Args:
        features: (N, D).
        labels: (N,), class ids, all < ``num_classes``.
        C: inverse regularisation strength, > 0.
        num_classes: None is the largest label + 1.
        start: where to start from, such as the solution for a neighbouring C.
        max_iter: of L-BFGS.
        tol: largest absolute gradient entry to stop at, as scikit-learn's.
        chunk_size: rows of ``features`` used at once; no effect on the result.
    """
    if not C > 0:
        raise ValueError(f"C must be > 0, got {C}")
    if num_classes is None:
        num_classes = int(labels.max()) + 1
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
        x, y = x.to(weight), y.to(weight.device, torch.int64)
        log_p = classifier.scores(x).log_softmax(dim=1)
        value -= log_p.gather(1, y[:, None]).double().sum().item()
        error = log_p.exp()
        error.scatter_add_(1, y[:, None], -torch.ones_like(error[:, :1]))
        grad[:, :-1] += error.T @ x
        grad[:, -1] += error.sum(dim=0)
    return value / len(features), grad / len(features)


def to_numpy(tensor: Tensor) -> Array:
    """``tensor`` as scipy's optimiser wants it: flat, float64, on the host."""
    flat: Array = tensor.flatten().double().cpu().numpy()
    return flat


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
    cs: Sequence[float] = GRID,
    validation_share: float = 0.2,
) -> LinearResult:
    """Linear evaluation on cached features.

    Features are centred and divided by one number, so that their mean squared length
    is their dimension: this makes ``C`` comparable between encoders. ``C`` is chosen by
    top-1 accuracy on a stratified part of the training set, the smaller one of equals;
    then a classifier is fitted on the whole training set. The test set is looked at
    once, at the end.

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
    num_classes = int(train_labels.max()) + 1
    held_out = stratified_mask(train_labels, validation_share, seed)
    accuracy = path_accuracy(
        (train_features[~held_out], train_labels[~held_out]),
        (train_features[held_out], train_labels[held_out]),
        num_classes,
        cs,
    )
    best = max(accuracy, key=lambda c: accuracy[c])
    scale = fit_scale(train_features)
    classifier = fit_logistic(
        scale(train_features), train_labels, C=best, num_classes=num_classes
    )
    ranked = ranked_classes(classifier.scores(scale(test_features)))
    return LinearResult(*topk_accuracy(ranked, test_labels), best, accuracy, ranked)


class Scale(NamedTuple):
    """(features - mean) / rms."""

    mean: Tensor
    rms: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scaled ``features`` (N, D)."""
        return (features - self.mean.to(features)) / self.rms.to(features)


def fit_scale(features: Tensor) -> Scale:
    """Centre, and one number to divide by: the root of the mean variance."""
    mean = features.double().mean(dim=0)
    rms = features.double().var(dim=0, correction=0).mean().sqrt()
    return Scale(mean, torch.where(rms > 0, rms, 1))


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


def path_accuracy(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    num_classes: int,
    cs: Sequence[float],
) -> dict[float, float]:
    """Top-1 on ``validation`` in percent for each of ``cs``, in ascending order.

    Each solution is the start of the next one.
    """
    scale = fit_scale(train[0])
    features, unseen = scale(train[0]), scale(validation[0])
    accuracy: dict[float, float] = {}
    classifier = None
    for c in sorted(cs):
        classifier = fit_logistic(
            features, train[1], C=c, num_classes=num_classes, start=classifier
        )
        ranked = ranked_classes(classifier.scores(unseen))
        accuracy[c] = topk_accuracy(ranked, validation[1]).top1
    return accuracy


def ranked_classes(scores: Tensor) -> Tensor:
    """The five best classes of each row of ``scores`` (N, C), or all if fewer."""
    return scores.topk(min(5, scores.shape[1]), dim=1).indices
