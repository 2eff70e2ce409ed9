"""The head: the loss, weighted, and what is logged beside it."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from varcon_plugin.functional import VarConTerms

__all__ = ["VarConHead", "build_loss"]


@MODELS.register_module()
class VarConHead(BaseModule):
    """Turns embeddings and labels into the loss and its log values.

    Args:
        loss: config of the loss, ``dict(type='VarConLoss', temperature=..., ...)``; its
            ``centroids`` may be ``dict(type='MomentumCentroids', ...)``.
        loss_weight: factor on the loss; ``1 / world_size`` gives the gradient scale of
            the authors' script.
        init_cfg: mmengine's initialisation config.
    """

    def __init__(
        self,
        loss: dict[str, Any] | None = None,
        loss_weight: float = 1.0,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.loss_module = build_loss(loss or {"type": "VarConLoss"}, "centroids")
        self.loss_weight = loss_weight

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference_embeddings: Tensor | None = None,
    ) -> VarConTerms:
        """The loss and the per-sample terms; where observers put their forward hook."""
        terms: VarConTerms = self.loss_module.forward_components(
            embeddings, labels, reference_embeddings=reference_embeddings
        )
        return terms

    def loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference_embeddings: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What mmengine optimises (``loss``) and logs (the means over this rank).

        Args:
            embeddings: (N, D), from the neck; normalised by the loss.
            labels: (N,), integer class ids.
            reference_embeddings: (N, D), as for `varcon_plugin.VarConLoss`.
        """
        terms = self(embeddings, labels, reference_embeddings)
        logged = {name: getattr(terms, name).mean() for name in LOGGED}
        return {"loss": self.loss_weight * terms.loss, **logged}


LOGGED = ("kl", "nll", "tau2", "confidence")  # no name with "loss": those are summed


def build_loss(config: dict[str, Any], part: str) -> Any:
    """The loss of ``config``, whose argument ``part`` may be a config itself."""
    config = dict(config)
    if isinstance(config.get(part), dict):
        config[part] = MODELS.build(config[part])
    return MODELS.build(config)
