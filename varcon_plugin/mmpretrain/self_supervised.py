"""The algorithm and the head for images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from varcon_plugin.mmpretrain.algorithm import VarCon
from varcon_plugin.mmpretrain.head import LOGGED, build_loss
from varcon_plugin.self_supervised import SelfSupervisedTerms

__all__ = ["VarConSSL", "VarConSSLHead"]


@MODELS.register_module()
class VarConSSL(VarCon):
    """VarCon without labels, beside mmpretrain's SimCLR and MoCo v3.

    Labels of the dataset, if it has any, are never read.

    Args:
        teacher_momentum: share of the model that its moving average takes in before
            each step, at the start of a cosine to 0 (mmpretrain's `CosineEMA`); the
            average then says the latent classes. None: the model itself says them.
        kwargs: as for `VarCon`.

    Raises:
        ValueError: there is a teacher but nothing that it would tell.
    """

    def __init__(
        self, *args: Any, teacher_momentum: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = None
        if teacher_momentum is None:
            return
        if not 0 < teacher_momentum <= 1:
            raise ValueError(
                f"teacher_momentum must be in (0, 1], got {teacher_momentum}"
            )
        if self.head.loss_module.pseudo_labels is None:
            raise ValueError(
                "teacher_momentum makes a teacher for the latent classes: give the "
                "loss pseudo_labels, or leave it out"
            )
        self.teacher = CosineEMA(self.encoder, momentum=teacher_momentum)

    def init_weights(self) -> None:
        """Draw the weights; the teacher starts from the same ones."""
        super().init_weights()
        if self.teacher is not None:
            self.teacher.module.load_state_dict(self.encoder.state_dict())

    def loss(
        self,
        inputs: list[Tensor] | Tensor,
        data_samples: list[DataSample] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The head's loss and log values for a batch.

        Args:
            inputs: two or more views, each (B, C, H, W).
            data_samples: not read.
            **kwargs: ignored, as in mmpretrain's algorithms.
        """
        views = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        teacher = self._teach(views)
        embeddings = self.embed(views).chunk(len(views))
        losses: dict[str, Tensor] = self.head.loss(embeddings, teacher)
        return losses

    @torch.no_grad()
    def _teach(self, views: list[Tensor]) -> Sequence[Tensor] | None:
        if self.teacher is None:
            return None
        self.teacher.update_parameters(self.encoder)
        laid_out = [view.contiguous(memory_format=self.layout) for view in views]
        return [self.teacher(view)[-1] for view in laid_out]


@MODELS.register_module()
class VarConSSLHead(BaseModule):
    """Turns the embeddings of views into the loss and its log values.

    Args:
        loss: config of the loss, ``dict(type='SelfSupervisedVarConLoss', ...)``; its
            ``pseudo_labels`` may be ``dict(type='PseudoLabels', ...)``.
        loss_weight: factor on the loss.
        init_cfg: mmengine's initialisation config.
    """

    def __init__(
        self,
        loss: dict[str, Any] | None = None,
        loss_weight: float = 1.0,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        loss = loss or {"type": "SelfSupervisedVarConLoss"}
        self.loss_module = build_loss(loss, "pseudo_labels")
        self.loss_weight = loss_weight

    def forward(
        self, views: Sequence[Tensor], teacher: Sequence[Tensor] | None = None
    ) -> SelfSupervisedTerms:
        """The loss with its parts; where observers put their forward hook."""
        terms: SelfSupervisedTerms = self.loss_module.forward_components(
            *views, teacher=teacher
        )
        return terms

    def loss(
        self, views: Sequence[Tensor], teacher: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What mmengine optimises (``loss``) and logs (the means over this rank).

        Args:
            views: (B, D) each, from the neck; normalised by the loss.
            teacher: the same views as the teacher embeds them.
        """
        terms = self(views, teacher)
        logged = {name: getattr(terms.image, name).mean() for name in LOGGED}
        if terms.latent is not None:
            logged["latent_nll"] = terms.latent.nll.mean()
        return {"loss": self.loss_weight * terms.loss, **logged}
