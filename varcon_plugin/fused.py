"""The objective and its exact gradient without any (N, C) matrix kept.

The target q takes two values only, so value and gradient need, of the C classes, the
log-sum-exp of the logits and one softmax-weighted sum of the centroids, p W: the shape
of attention with queries z and keys = values = W. The derivation is in
docs/objective.md; `varcon_plugin.functional.varcon_terms` is the specification.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varcon_plugin.functional import (
    VarConTerms,
    target_distribution,
    true_logits,
    varcon_terms,
)

__all__ = ["fused_varcon_terms"]

CHUNK_ELEMENTS = 2**19  # logits held at a time: 2 MB in float32, about an L2 cache
MIN_CHUNK_ROWS = 64  # fewer rows leave the matrix product idle


def fused_varcon_terms(
    embeddings: Tensor,
    targets: Tensor,
    centroids: Tensor,
    *,
    temperature: float,
    epsilon: float,
    present: Tensor | None = None,
    own: Tensor | None = None,
) -> VarConTerms:
    """`varcon_plugin.functional.varcon_terms` in O(N + C) memory; same arguments.

    Only ``loss`` carries a gradient, and only to ``embeddings``; where ``centroids`` or
    ``own`` ask for one the specification answers, in O(N C) memory. So it does in the
    backward pass where a second derivative is asked for (``create_graph=True``).
    Without a gradient to compute, the weighted sum is left out.
    """
    settings = (temperature, epsilon)
    if torch.is_grad_enabled():
        if centroids.requires_grad or (own is not None and own.requires_grad):
            return varcon_terms(
                embeddings,
                targets,
                centroids,
                temperature=temperature,
                epsilon=epsilon,
                present=present,
                own=own,
            )
        if embeddings.requires_grad:
            return VarConTerms(
                *_FusedTerms.apply(
                    embeddings, targets, centroids, present, own, *settings
                )
            )
    return _evaluate(embeddings, targets, centroids, present, own, *settings)[0]


class _FusedTerms(torch.autograd.Function):
    """Computes the gradient beside the value; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        targets: Tensor,
        centroids: Tensor,
        present: Tensor | None,
        own: Tensor | None,
        temperature: float,
        epsilon: float,
    ) -> VarConTerms:
        inputs = (embeddings, targets, centroids, present, own)
        terms, gradient = _evaluate(*inputs, temperature, epsilon, gradient=True)
        ctx.save_for_backward(gradient, *inputs)
        ctx.settings = {"temperature": temperature, "epsilon": epsilon}
        ctx.mark_non_differentiable(*terms[1:])
        return terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradient, embeddings, targets, centroids, present, own = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: be differentiable again
            loss = varcon_terms(
                embeddings,
                targets,
                centroids,
                **ctx.settings,
                present=present,
                own=own,
            ).loss
            (scaled,) = torch.autograd.grad(
                loss, embeddings, grad_loss, create_graph=True
            )
        else:
            scaled = grad_loss[:, None] * gradient
        return scaled, None, None, None, None, None, None


def _evaluate(
    embeddings: Tensor,
    targets: Tensor,
    centroids: Tensor,
    present: Tensor | None,
    own: Tensor | None,
    temperature: float,
    epsilon: float,
    gradient: bool = False,
) -> tuple[VarConTerms, Tensor | None]:
    """The terms, and the gradient of the loss w.r.t. the embeddings if asked for."""
    batch_mean = centroids.index_select(0, targets)  # w_r, as it stands in W
    reference, similarity = true_logits(embeddings, targets, centroids, own)
    true = similarity / temperature
    weighted: Tensor | None
    if own is None and gradient and _attention_is_exact(embeddings, temperature):
        log_p, weighted = _attend(embeddings, true, centroids, present, temperature)
    else:
        log_p, weighted = _attend_in_chunks(
            embeddings, true, targets, centroids, present, temperature, gradient
        )

    if present is None:
        num_others = true.new_tensor(len(centroids) - 1)
        total = centroids.sum(dim=0)
    else:
        num_others = present.sum().to(true) - 1
        total = present.to(centroids) @ centroids
    others = total - batch_mean  # (N, D), sum of the references of the other classes
    lse = true - log_p
    mean_log_p = (embeddings * others).sum(dim=1, keepdim=True) / (
        temperature * num_others.clamp(min=1)
    ) - lse

    confidence = log_p.exp()
    tau2, q, rest, log_q, log_q_other = target_distribution(
        confidence, num_others, temperature, epsilon
    )
    kl = q * (log_q - log_p) + rest * (log_q_other - mean_log_p)
    kl = kl.masked_fill(num_others == 0, 0)
    loss = kl - log_p
    terms = VarConTerms(*(x[:, 0] for x in (loss, kl, -log_p, confidence, tau2)))
    if weighted is None:
        return terms, None

    gap = (log_q - log_p) - (log_q_other - mean_log_p)
    k = -2 * epsilon * gap * (q * rest / tau2 / tau2)  # the path through tau2
    slope = 2 - k * confidence
    others_p = weighted - confidence * batch_mean  # sum of p_j w_j over the others
    pull = slope * confidence + k * confidence - 1 - q
    push = rest / num_others.clamp(min=1)
    grad = (slope * others_p + pull * reference - push * others) / temperature
    return terms, grad.masked_fill(num_others == 0, 0)


def _attention_is_exact(embeddings: Tensor, temperature: float) -> bool:
    """Whether torch's fused attention keeps the precision, and p_r from underflowing.

    Logits span 2 / temperature; exp(-80) is still a normal float32. On a GPU fused
    attention works in half precision or in TF32: there the chunks serve.
    """
    return embeddings.device.type == "cpu" and 2 / temperature <= 80


def _attend(
    embeddings: Tensor,
    true: Tensor,
    centroids: Tensor,
    present: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log p(r|z) (N, 1) and p W (N, D) by one call of fused attention.

    Attention returns no log-sum-exp. One more key, whose logit is the sample's own s_r
    (an extra query column against a key that is 1 there and 0 elsewhere), and an extra
    value column that is 1 for that key alone give p0 = p_r / (1 + p_r) in that column
    and p W (1 - p0) in the others. Keys equal values, so one matrix serves as both.
    """
    query = torch.cat((embeddings, true * temperature), dim=1)
    keys = F.pad(centroids, (0, 1, 0, 1))
    keys[-1, -1] = 1
    mask = None
    if present is not None:
        mask = torch.zeros_like(keys[:, 0])
        mask[:-1].masked_fill_(~present, -torch.inf)
        mask = mask[None, None, None]
    out = F.scaled_dot_product_attention(
        query[None, None],
        keys[None, None],
        keys[None, None],
        mask,
        scale=1 / temperature,
    )[0, 0]
    extra = out[:, -1:]
    rest = 1 - extra
    return (extra / rest).log().clamp(max=0), out[:, :-1] / rest


def _attend_in_chunks(
    embeddings: Tensor,
    true: Tensor,
    targets: Tensor,
    centroids: Tensor,
    present: Tensor | None,
    temperature: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same as `_attend` row chunk by row chunk; without p W if not asked for.

    ``true`` takes the place of the logit computed from ``centroids``.
    """
    mask = None if present is None else ~present
    rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // len(centroids))
    log_p, weighted = [], []
    for z, s, r in zip(
        *(torch.split(x, rows) for x in (embeddings, true, targets)), strict=True
    ):
        logits = (z @ centroids.T).div_(temperature).scatter_(1, r[:, None], s)
        if mask is not None:
            logits.masked_fill_(mask, -torch.inf)
        top = logits.amax(dim=1, keepdim=True)
        weights = logits.sub_(top).exp_()
        norm = weights.sum(dim=1, keepdim=True)
        log_p.append(s - top - norm.log())
        if gradient:
            weighted.append((weights @ centroids).div_(norm))
    return torch.cat(log_p), torch.cat(weighted) if gradient else None
