"""The objective and its exact gradient without any (N, C) matrix kept.

The target q takes two values only, so value and gradient need, of the classes but the
true one, the log-sum-exp of the logits, their mean, and the softmax-weighted mean of
the centroids: the shape of attention with queries z and keys = values = W. With mu_p
this mean, mu_u the plain mean of the other centroids, and k the path through tau2,

    dL/dz = ((2 - k p_r) (1 - p_r) (mu_p - w_r) + (1 - q_r) (w_r - mu_u)) / temperature

is derived in docs/objective.md. `varcon_plugin.functional.varcon_terms` is the
specification. In the code ``toward`` and ``away`` are the two coefficients.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varcon_plugin.functional import (
    VarConTerms,
    exporting,
    target_distribution,
    transforming,
    varcon_terms,
)

__all__ = ["fused_varcon_terms"]

TILE_COLUMNS = 2**9  # classes whose logits are held at a time
TILE_BYTES_PER_THREAD = 2**22  # of logits: about a core's share of the cache
DEVICE_TILE_COLUMNS = 2**14  # the same on an accelerator: worth a kernel launch
DEVICE_TILE_BYTES = 2**26  # of one block of columns; of several, half of the L2 cache
MIN_TILE_ROWS = 64  # fewer leave the matrix product idle
CONVOLVED_ROWS = 16  # torch hands no smaller batch to oneDNN in a single thread
MIN_CONVOLVED_ROWS = 128  # with fewer, or with fewer multiplications, MKL is faster
MIN_CONVOLVED_PRODUCTS = 2**22


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
    backward pass where a second derivative is asked for (``create_graph=True``), under
    the transforms of `torch.func`, and in what `torch.export` writes. Without a
    gradient to compute, the weighted sum is left out.
    """
    settings = (temperature, epsilon)
    plain = transforming() or exporting()
    if torch.is_grad_enabled() and not plain:
        plain = centroids.requires_grad or (own is not None and own.requires_grad)
    if plain:
        return varcon_terms(
            embeddings,
            targets,
            centroids,
            temperature=temperature,
            epsilon=epsilon,
            present=present,
            own=own,
        )
    if torch.is_grad_enabled() and embeddings.requires_grad:
        return VarConTerms(
            *_FusedTerms.apply(embeddings, targets, centroids, present, own, *settings)
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
        # a bank moves in place before the backward pass, which does not look at it
        ctx.save_for_backward(gradient, embeddings, targets, present, own)
        ctx.centroids, ctx.version = centroids, version(centroids)
        ctx.settings = {"temperature": temperature, "epsilon": epsilon}
        ctx.mark_non_differentiable(*terms[1:])
        return terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradient, embeddings, targets, present, own = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: be differentiable again
            centroids = ctx.centroids
            if version(centroids) != ctx.version:
                raise RuntimeError(
                    "a second derivative of VarConLoss needs the references of its "
                    "batch, but MomentumCentroids has moved: put it in eval mode"
                )
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


def version(tensor: Tensor) -> int:
    """How often ``tensor`` was changed in place; 0 while compiling."""
    return 0 if torch.compiler.is_compiling() else tensor._version


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
    if present is None:
        weights = torch.ones_like(centroids[:, 0])
    else:
        weights = present.to(centroids)
    num_others = weights.sum() - 1
    total = torch.mv(centroids.T, weights)  # (D,), sum of the references of all classes
    weighted = torch.empty_like(embeddings) if gradient else None
    batch_mean = F.embedding(targets, centroids)  # w_r, as it stands in W
    true = in_table = _dot(embeddings, batch_mean, memory=weighted) / temperature
    if own is not None:
        true = _dot(embeddings, own, memory=weighted) / temperature
    mean_logit = torch.mv(embeddings, total)[:, None] / temperature
    mean_logit = (mean_logit - in_table) / num_others.clamp(min=1)
    lse, norm = attend_to_others(
        embeddings, targets, centroids, present, weights, temperature, weighted
    )

    terms, (toward, away, each) = terms_of_logits(
        true, lse, mean_logit, num_others, temperature, epsilon
    )
    if weighted is None:
        return terms, None
    grad = weighted.mul_(toward / norm)
    if own is None:
        grad.addcmul_(batch_mean, away - toward + each)
    else:
        grad.addcmul_(own, away - toward).addcmul_(batch_mean, each)
    return terms, grad.addcmul_(total, each, value=-1)


def terms_of_logits(
    true: Tensor,
    lse: Tensor,
    mean_logit: Tensor,
    num_others: Tensor,
    temperature: float,
    epsilon: float,
) -> tuple[VarConTerms, tuple[Tensor, Tensor, Tensor]]:
    """The terms of each sample from three numbers about its logits.

    Args:
        true: (N, 1), logit of the true class.
        lse: (N, 1), log-sum-exp of the logits of the others.
        mean_logit: (N, 1), their mean.
        num_others: (), how many there are.
        temperature: tau_1.
        epsilon: how far tau2 moves around it.

    Returns:
        The terms, each (N,). Of the gradient w.r.t. the embedding, each (N, 1): the
        factor of (mu_p - w_r), that of (w_r - mu_u), and the latter for each of the
        classes whose mean mu_u is.
    """
    margin = true - lse  # log p_r / (1 - p_r)
    log_p = F.logsigmoid(margin)  # Eq. 8, true class
    mean_log_p = mean_logit - true + log_p  # Eq. 8, mean of the others
    confidence = torch.sigmoid(margin)
    tau2, q, rest, log_q, log_q_other = target_distribution(
        confidence, num_others, temperature, epsilon
    )
    kl = q * (log_q - log_p) + rest * (log_q_other - mean_log_p)
    kl = kl.masked_fill(num_others == 0, 0)
    loss = kl - log_p  # Eq. 7
    terms = VarConTerms(*(x[:, 0] for x in (loss, kl, -log_p, confidence, tau2)))

    gap = 1 / tau2 - (true - mean_logit)  # log q_r / q_o - log p_r / p_o, mean over o
    k = -2 * epsilon * gap * (q * rest / tau2 / tau2)  # the path through tau2
    scale = (num_others > 0).to(true) / temperature
    toward = (2 - k * confidence) * torch.sigmoid(-margin) * scale
    away = rest * scale
    return terms, (toward, away, away / num_others.clamp(min=1))


def _dot(a: Tensor, b: Tensor, memory: Tensor | None) -> Tensor:
    """Inner product of each row (N, 1), by way of ``memory`` (N, D) if there is any."""
    return torch.mul(a, b, out=memory).sum(dim=1, keepdim=True)


def attend_to_others(
    embeddings: Tensor,
    targets: Tensor,
    centroids: Tensor,
    present: Tensor | None,
    weights: Tensor,
    temperature: float,
    weighted: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Softmax over all classes but the true one, in one pass over the logits.

    They are made tile by tile, each worked on while in the cache. ``weights`` (C,) says
    how often a centroid counts; one that counts 0 times may be anything. Exponentials
    are to base 2, which torch has vectorised on every CPU. Unless logits of
    +-1 / temperature overflow, no maximum is subtracted, and tiles of different columns
    add up as they are; otherwise a tile holds all columns.

    Returns:
        The log-sum-exp of the logits of the others (N, 1), -inf where there are none.
        The sum of the weights (N, 1), 1 where there are none, by which the weighted sum
        of their centroids is yet to be divided that is left in ``weighted`` (N, D), if
        given.
    """
    size, num_classes = len(embeddings), len(centroids)
    scale = 1 / (math.log(2) * temperature)
    shift = 2 * scale > math.log2(torch.finfo(embeddings.dtype).max) - 1
    rows, columns = _tile_shape(embeddings, num_classes, whole_rows=shift)
    convolve = _convolution_pays(embeddings, rows, columns)
    if convolve:
        rows += -rows % CONVOLVED_ROWS  # nothing to pad but in the last tile
    memory = embeddings.new_empty(0 if convolve else rows * columns)
    top, norm = (embeddings.new_zeros(size, 1) for _ in range(2))
    repeated = present is not None and present.is_floating_point()
    blocks = [torch.split(x, columns) for x in (centroids, weights)]
    # -inf is added to the logit of the true class, and 0 to one of every other block.
    block, column = (targets // columns)[:, None], (targets % columns)[:, None]
    hide, keep = embeddings.new_full((), -torch.inf), embeddings.new_zeros(())
    one = rows >= size  # compiled for batches of any size, which a range would fix
    for i in range(1) if one else range(0, size, rows):
        row = slice(i, i + rows)
        query, at = embeddings[row], column[row]
        for j, (keys, weight) in enumerate(zip(*blocks, strict=True)):
            if present is not None:
                keys = keys.masked_fill((weight == 0)[:, None], 0)
            value = keys * weight[:, None] if repeated else keys
            if convolve:
                tile = _convolve(query, keys * scale)
            else:
                tile = memory[: len(query) * len(keys)].view(len(query), len(keys))
                tile.addmm_(query, keys.T, beta=0, alpha=scale)
            within = at if len(keys) == columns else at.clamp(max=len(keys) - 1)
            tile.scatter_add_(1, within, torch.where(block[row] == j, hide, keep))
            if shift:
                tile.masked_fill_(weight == 0, -torch.inf)
                torch.amax(tile, 1, keepdim=True, out=top[row])
                tile.sub_(top[row].clamp_(min=-2 * scale))  # finite without others
            tile.exp2_()
            if present is None:
                norm[row].add_(tile.sum(dim=1, keepdim=True))
            else:
                norm[row, 0].addmv_(tile, weight)
            if weighted is not None and convolve:
                add = weighted[row].add_ if j else weighted[row].copy_
                add(_convolve(tile, value.T))
            elif weighted is not None:
                weighted[row].addmm_(tile, value, beta=min(j, 1))
    return (top + norm.log2()) * math.log(2), norm.masked_fill(norm == 0, 1)


def _convolution_pays(embeddings: Tensor, rows: int, columns: int) -> bool:
    """Whether `_convolve` is there and faster than torch's matrix product.

    That is MKL's, half as fast as oneDNN on an AMD CPU with AVX-512.
    """
    backends: Any = torch.backends  # untyped upstream
    return (
        embeddings.device.type == "cpu"
        and embeddings.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and backends.mkl.is_available()
        and backends.mkldnn.is_available()
        and backends.mkldnn.enabled
        and rows >= MIN_CONVOLVED_ROWS
        and rows * columns * embeddings.shape[1] >= MIN_CONVOLVED_PRODUCTS
    )


def _convolve(rows: Tensor, kernels: Tensor) -> Tensor:
    """``rows @ kernels.T``, as a convolution of 1 x 1, which oneDNN computes."""
    size, missing = len(rows), -len(rows) % CONVOLVED_ROWS
    if missing:
        rows = F.pad(rows, (0, 0, 0, missing))
    image = rows.reshape(CONVOLVED_ROWS, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)
    with torch.autocast("cpu", enabled=False):
        found = F.conv2d(image, kernels[:, :, None, None])
    return found.permute(0, 2, 3, 1).reshape(-1, len(kernels))[:size]


def _tile_shape(
    embeddings: Tensor, num_classes: int, whole_rows: bool
) -> tuple[int, int]:
    """How many samples and classes to hold the logits of at a time."""
    limit, size = DEVICE_TILE_COLUMNS, DEVICE_TILE_BYTES
    if not torch.compiler.is_compiling():
        if embeddings.device.type == "cpu":
            limit, size = TILE_COLUMNS, TILE_BYTES_PER_THREAD * torch.get_num_threads()
        elif embeddings.device.type == "cuda" and num_classes > limit:
            size = _cache_bytes(embeddings.device.index) // 2
    columns = num_classes if whole_rows else _even(num_classes, limit)
    rows = size // (columns * embeddings.element_size())
    return _even(len(embeddings), max(MIN_TILE_ROWS, rows)), columns


@functools.cache
def _cache_bytes(index: int | None) -> int:
    """Size of the L2 cache of a GPU: 50 MiB on an H100, 40 on an A100."""
    return int(torch.cuda.get_device_properties(index).L2_cache_size)


def _even(length: int, limit: int) -> int:
    """Size of the pieces, at most ``limit`` each, that divide ``length`` evenly."""
    if length <= limit:
        return length
    return math.ceil(length / math.ceil(length / limit))
