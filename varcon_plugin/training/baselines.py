"""Losses to compare VarCon with, under the same contract across ranks.

``criterion(embeddings, labels)`` as for `varcon_plugin.VarConLoss`: the DDP-averaged
gradient equals the single-process gradient on the concatenated batch, also for batches
of different size, and the mean of the returned values is the global loss.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from varcon_plugin.arguments import argument_error
from varcon_plugin.centroids import References
from varcon_plugin.distributed import (
    active_group,
    agree,
    gather_labels,
    sum_across_ranks,
)
from varcon_plugin.functional import VarConTerms
from varcon_plugin.loss import VarConLoss

__all__ = ["MetricLearningLoss", "PrototypeLoss"]

WITHOUT_LABELS = ("VICRegLoss",)
ABSTRACT = ("BaseMetricLossFunction", "GenericPairLoss")


class MetricLearningLoss(nn.Module):
    """Any loss of pytorch-metric-learning by name, over the batches of all ranks.

    Embeddings and labels of all ranks are gathered, with gradient, and every rank
    computes the loss of the whole batch: exact for every loss, those with weights of
    their own (proxies) included, in the memory of the whole batch. Losses that draw
    samples draw on each rank for themselves. Computed in float32 or better.

    Args:
        name: class in ``pytorch_metric_learning.losses``, such as ``"SupConLoss"``.
        **kwargs: its arguments. Its own defaults hold otherwise: its SupConLoss
            averages over the samples with a loss above 0 and is not scaled by the
            temperature, as the SupCon paper's code is.

    Raises:
        ValueError: there is no such loss, or it does not learn from labels.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__()
        self.name = name
        self.loss: nn.Module = find_loss(name)(**kwargs)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the global batch, the same on every rank.

        Args:
            embeddings: (N, D), floating; all views of all images of this rank.
            labels: (N,), integer class ids.

        Raises:
            TypeError, ValueError or RuntimeError: as `varcon_plugin.VarConLoss`.
        """
        group, sizes, dtype = checked_group(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            vectors = embeddings.to(torch.promote_types(embeddings.dtype, dtype))
            labels = labels.to(embeddings.device, torch.int64)
            if group is not None:
                labels, mine = gather_labels(labels, sizes, group)
                before, after = mine.start, len(labels) - mine.stop
                # zeros above and below: the sum over ranks puts the rows in order
                vectors = F.pad(vectors, (0, 0, before, after))
                vectors = sum_across_ranks(vectors, group)
            loss: Tensor = self.loss(vectors, labels)
            return loss


class PrototypeLoss(VarConLoss):
    """Twice the cross-entropy against class means: VarCon without its soft target.

    VarCon with epsilon = 0 and the one-hot target in place of q, for which
    KL(q || p) = -log p: what remains if tau2 and the target distribution are taken
    away. Class means, detachment and ranks as in `varcon_plugin.VarConLoss`.

    Args:
        temperature: tau_1, > 0.
        num_classes: labels are in [0, num_classes); None: any integers.

    Raises:
        ValueError: the temperature is out of range.
    """

    def __init__(
        self, temperature: float = 0.1, *, num_classes: int | None = None
    ) -> None:
        super().__init__(temperature, 0.0, num_classes=num_classes)

    def _terms(self, unit: Tensor, references: References) -> VarConTerms:
        logits = unit @ references.centroids.T / self.temperature  # Eq. 8
        if references.present is not None:
            logits = logits.masked_fill(~references.present, -math.inf)
        nll = F.cross_entropy(logits, references.targets, reduction="none")
        tau2 = torch.full_like(nll, self.temperature)
        return VarConTerms(2 * nll, nll, nll, (-nll).exp(), tau2)


def checked_group(
    embeddings: Tensor, labels: Tensor
) -> tuple[ProcessGroup | None, list[int], torch.dtype]:
    """The ranks, their batch sizes and dtype, once all have good arguments."""
    group = active_group()
    error = argument_error(embeddings, labels, None)
    if group is not None:
        sizes, dtype, _ = agree(error, embeddings, group)
        return group, sizes, dtype
    if error is not None:
        raise error
    return None, [], torch.float32


def find_loss(name: str) -> type[nn.Module]:
    """The class ``name`` of pytorch-metric-learning, if it learns from labels."""
    from pytorch_metric_learning import losses

    usable: dict[str, type[nn.Module]] = {
        key: value
        for key, value in vars(losses).items()
        if isinstance(value, type)
        and issubclass(value, losses.BaseMetricLossFunction)
        and key not in (*WITHOUT_LABELS, *ABSTRACT)
    }
    if name in usable:
        return usable[name]
    if hasattr(losses, name):
        raise ValueError(
            f"{name} of pytorch-metric-learning is not supported: it wraps another "
            "loss, keeps state of its own between batches or takes no labels"
        )
    near = difflib.get_close_matches(name, usable) or sorted(usable)
    raise ValueError(
        f"pytorch-metric-learning has no loss {name!r}; near it: {', '.join(near)}"
    )
