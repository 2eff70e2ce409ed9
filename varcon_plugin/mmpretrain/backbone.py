"""timm models as mmpretrain backbones, pooled as timm pools them."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor

from varcon_plugin.checkpoints.backbones import create_timm_model

__all__ = ["TIMMEncoder"]


@MODELS.register_module()
class TIMMEncoder(BaseBackbone):
    """A timm model without its classifier: images in, pooled features (N, F) out.

    mmpretrain's ``TIMMBackbone`` takes the pooling off and returns maps, or all tokens
    of a transformer with the class token among them, which a neck cannot pool rightly.
    Here the model pools as it does in timm: class token or mean of the patch tokens
    (``global_pool='token'`` or ``'avg'``), final norm before or after. Necks behind it
    take ``with_avg_pool=False``.

    Args:
        model_name: timm model name.
        frozen: no gradients and evaluation mode throughout, for linear evaluation.
        init_cfg: mmengine's initialisation config.
        **kwargs: arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        ValueError: timm has no such model.
    """

    def __init__(
        self, model_name: str, frozen: bool = False, init_cfg: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.timm_model = create_timm_model(model_name, **kwargs)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features (N, F) of images (N, 3, H, W), as mmpretrain's tuple of stages."""
        return (self.timm_model(images),)

    def train(self, mode: bool = True) -> TIMMEncoder:
        """Training mode, unless frozen."""
        super().train(mode and not self.frozen)
        return self
