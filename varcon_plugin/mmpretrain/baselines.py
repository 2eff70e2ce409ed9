"""Heads of the baselines: another loss in the place of `VarConHead`, nothing else."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor

__all__ = ["ClassifierHead", "LossHead"]


@MODELS.register_module()
class LossHead(BaseModule):
    """Turns embeddings and labels into any loss.

    Args:
        loss: config of a module that takes embeddings (N, D) and labels (N,), such as
            ``dict(type='MetricLearningLoss', name='SupConLoss', temperature=0.1)``.
        loss_weight: factor on the loss.
        init_cfg: mmengine's initialisation config.
    """

    def __init__(
        self, loss: dict[str, Any], loss_weight: float = 1.0, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.loss_module = MODELS.build(loss)
        self.loss_weight = loss_weight

    def loss(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What mmengine optimises, of embeddings (N, D) and class ids (N,)."""
        return {"loss": self.loss_weight * self.loss_module(embeddings, labels)}


@MODELS.register_module()
class ClassifierHead(LinearClsHead):
    """mmpretrain's linear classifier, trained on all views by `VarCon`.

    The loss is the mean over this rank's samples, as everywhere in mmpretrain: exact
    across ranks for batches of equal size.
    """

    def loss(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What mmengine optimises, of features (N, D) and class ids (N,)."""
        return {"loss": self.loss_module(self((features,)), labels)}
