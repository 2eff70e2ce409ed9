"""`EmaEncoder`: a slow copy of an encoder, for class references."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["EmaEncoder"]


class EmaEncoder(AveragedModel):
    """The exponential moving average of an encoder's weights and statistics.

    Its embeddings are given to `varcon_plugin.VarConLoss` as ``reference_embeddings``,
    so that class references lie in a space that moves slowly, as in t-ReX
    (https://arxiv.org/abs/2206.15369). `forward` is without gradient. Like the encoder
    it is in training mode: its BatchNorm layers normalise over the batch.

    Args:
        encoder: what it follows; copied, with what it returns.
        decay: share of the average that is left after a step, in [0, 1).

    Raises:
        ValueError: the decay is out of range.

    Examples:
        >>> slow = EmaEncoder(model, decay=0.999)
        >>> for views, labels in loader:
        >>>     slow.follow(model)
        >>>     loss = criterion(model(views), labels, reference_embeddings=slow(views))
    """

    def __init__(self, encoder: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(encoder, multi_avg_fn=average, use_buffers=True)
        self.requires_grad_(False)

    def follow(self, encoder: nn.Module) -> None:
        """Move towards ``encoder``; the first time, become equal to it."""
        self.update_parameters(encoder)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder returns."""
        return self.module(*args, **kwargs)
