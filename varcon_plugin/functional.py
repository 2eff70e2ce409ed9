"""VarCon as pure functions of tensors (https://arxiv.org/abs/2506.07413).

Notation, and the paper's symbol for it:

==============  =======  =====================================================
``embeddings``  z        (N, D), unit rows: all views of all images
``targets``     r        (N,), each sample's row of ``centroids``
``centroids``   w        (C, D), unit rows: one reference for each class
``temperature`` tau_1    > 0
``epsilon``     epsilon  0 <= epsilon < temperature
``tau2``        tau_2    (N,), temperature of the target distribution
``confidence``  p(r|z)   (N,), posterior of the true class
==============  =======  =====================================================

`varcon_terms` is the specification: the paper's equations, differentiable in every
argument and as often as asked. `varcon_plugin.fused` computes the same numbers faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "VarConTerms",
    "class_sums",
    "exporting",
    "normalize",
    "transforming",
    "varcon_terms",
]

IS_EXPORTING = getattr(torch.compiler, "is_exporting", bool)  # new in torch 2.7
MIN_TAU2 = 1e-18  # q_r is 1 to the last digit far above; its square is still a float32


class VarConTerms(NamedTuple):
    """What the objective says about each sample; every field is (N,).

    Attributes:
        loss: kl + nll, the sample's loss (Eq. 7).
        kl: KL(q || p), >= 0.
        nll: -log p(r|z), >= 0.
        confidence: p(r|z), in [0, 1].
        tau2: in [temperature - epsilon, temperature + epsilon].
    """

    loss: Tensor
    kl: Tensor
    nll: Tensor
    confidence: Tensor
    tau2: Tensor


def normalize(vectors: Tensor) -> Tensor:
    """Rows of ``vectors`` (..., D) scaled to unit length.

    A row of exactly zero has no direction: it stays zero and its gradient is zero,
    where division by a small constant would give a gradient of that constant's inverse.
    """
    if transforming():
        return _divide_by_norm(vectors)[0]
    unit: Tensor = _Normalize.apply(vectors)
    return unit


def transforming() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, ...) runs this code.

    What has a gradient of its own then leaves it to the transform, and nothing looks at
    values.
    """
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active()
    return active


def _divide_by_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and the inverse norms, also where the squares leave the dtype."""
    exponent = 1024 if vectors.dtype == torch.float64 else 128
    far = 2.0 ** (exponent * 15 // 32)
    largest = torch.linalg.vector_norm(vectors, torch.inf, dim=-1, keepdim=True)
    scale = torch.ones_like(largest)  # by powers of two: nothing is rounded
    scale = scale.masked_fill(largest > far, 2.0 ** -(exponent * 5 // 8))
    scale = scale.masked_fill(largest < 1 / far, 2.0 ** (exponent * 25 // 32))
    scaled = vectors * scale
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    inverse = norm.masked_fill(norm == 0, torch.inf).reciprocal()
    limit = torch.finfo(vectors.dtype).max
    return scaled * inverse, (inverse * scale).clamp(max=limit)


class _Normalize(torch.autograd.Function):
    """The gradient projected on the tangent, in half the passes of autograd's."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        unit, inverse = _divide_by_norm(vectors)
        ctx.save_for_backward(vectors, unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        vectors, unit, inverse = ctx.saved_tensors
        again = torch.is_grad_enabled()  # create_graph=True: be differentiable again
        if again:
            unit, inverse = _divide_by_norm(vectors)
        product: Tensor = grad * unit
        radial = product.sum(dim=-1, keepdim=True)  # untouched by autocast
        memory = None if again else product
        radial_part = torch.mul(unit, radial * -inverse, out=memory)
        return radial_part.addcmul_(grad, inverse)


def exporting() -> bool:
    """Whether `torch.export` records this code, for batches of any size."""
    asked: bool = IS_EXPORTING()
    return asked


def class_sums(
    embeddings: Tensor, targets: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Sum of the embeddings of each class (C, D) and their number (C,).

    The unit-length class mean w_r is ``normalize(sums)``: the count cancels. Sums of
    several batches or ranks add up to those of their union, which the means do not.
    """
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1])
    counts = embeddings.new_zeros(num_classes)
    return (
        sums.index_add(0, targets, embeddings),
        counts.index_add(0, targets, torch.ones_like(embeddings[:, 0])),
    )


def target_distribution(
    confidence: Tensor, num_others: Tensor, temperature: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The target q, softmax(onehot / tau2), which takes two values only.

    Returns tau2, q_r, 1 - q_r, log q_r and log q_o, each shaped as ``confidence``; q_o
    is the probability of each of the ``num_others`` (0-dim) classes but the true one.
    In log space throughout: exp(1 / tau2) overflows float32 below tau2 = 0.0113.
    """
    tau2 = (temperature - epsilon) + 2 * epsilon * confidence  # Eq. 13
    log_others = num_others.clamp(min=1).log()
    inverse = 1 / tau2.clamp(min=MIN_TAU2)
    margin = inverse - log_others  # Eq. 10-12: q_r = exp(1/tau2) / (exp(1/tau2) + n)
    log_q = F.logsigmoid(margin)
    return tau2, torch.sigmoid(margin), torch.sigmoid(-margin), log_q, log_q - inverse


def varcon_terms(
    embeddings: Tensor,
    targets: Tensor,
    centroids: Tensor,
    *,
    temperature: float,
    epsilon: float,
    present: Tensor | None = None,
    own: Tensor | None = None,
) -> VarConTerms:
    """The objective of each sample, as the paper writes it (Eq. 7-13).

    Args:
        embeddings: (N, D), unit rows.
        targets: (N,) rows of ``centroids``.
        centroids: (C, D), unit rows. Detach them for the published objective: here they
            are an argument like any other, and receive a gradient if they ask for one.
        temperature: tau_1, > 0.
        epsilon: how far tau2 moves around ``temperature``; 0 <= epsilon < temperature.
        present: (C,) bool, the rows of ``centroids`` that count; None means all.
            Floating, how many times each counts, 1 for those in ``targets``.
        own: (N, D), each sample's reference of its own class in place of
            ``centroids[targets]`` (leave-one-out).

    Returns:
        Per-sample terms, each (N,), all differentiable. With a single class present
        they are loss 0, kl 0, nll 0, confidence 1.
    """
    reference = centroids.index_select(0, targets) if own is None else own
    true = (embeddings * reference).sum(dim=1, keepdim=True) / temperature
    logits = embeddings @ centroids.T / temperature
    logits = logits.scatter(1, targets[:, None], true)
    if present is None:
        num_others = logits.new_full((), len(centroids) - 1)
        others = logits.sum(dim=1, keepdim=True) - true
    else:
        times = present.to(logits)
        num_others = times.sum() - 1
        others = torch.mv(logits.masked_fill(times == 0, 0), times)[:, None] - true
        logits = logits.masked_fill(times == 0, 0) + times.log()
    lse = logits.logsumexp(dim=1, keepdim=True)
    log_p = true - lse  # Eq. 8, true class
    mean_log_p = others / num_others.clamp(min=1) - lse  # Eq. 8, mean of the others
    confidence = log_p.exp()
    tau2, q, rest, log_q, log_q_other = target_distribution(
        confidence, num_others, temperature, epsilon
    )
    kl = q * (log_q - log_p) + rest * (log_q_other - mean_log_p)
    kl = kl.masked_fill(num_others == 0, 0)
    loss = kl - log_p  # Eq. 7
    return VarConTerms(*(x[:, 0] for x in (loss, kl, -log_p, confidence, tau2)))
