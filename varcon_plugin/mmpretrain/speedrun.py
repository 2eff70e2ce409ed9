"""The small network as a mmpretrain backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor

from varcon_plugin.training import speedrun

__all__ = ["SpeedrunNet"]


@MODELS.register_module()
class SpeedrunNet(BaseBackbone):
    """`varcon_plugin.training.speedrun.SpeedrunNet`, behind mmpretrain's interface.

    Features come pooled: necks behind it do not pool again.

    Args:
        widths: channels of the groups of convolutions.
        init_cfg: mmengine's initialisation config.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 128, 128), init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.network = speedrun.SpeedrunNet(widths)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features (N, F) of images (N, 3, H, W), as mmpretrain's tuple of stages."""
        return (self.network(images),)
