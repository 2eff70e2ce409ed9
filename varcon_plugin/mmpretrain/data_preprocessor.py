"""The per-pixel half of mmpretrain's SimCLR pipeline, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from varcon_plugin.training import BatchAugment

__all__ = ["BatchAugmentDataPreprocessor"]


@MODELS.register_module()
class BatchAugmentDataPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's self-supervised preprocessor that augments while it trains.

    Outside training it is ``SelfSupDataPreprocessor``.

    Args:
        mean: of R, G, B in [0, 255]; None to leave the values there.
        std: of R, G, B in [0, 255].
        to_rgb: the images are BGR, as all that mmpretrain and `TwoCrops` read from
            files. False for datasets that hold RGB, as its CIFAR does.
        non_blocking: copy to the device while the host goes on; needs ``pin_memory``
            of the data loader to have an effect.
        augment: arguments of `varcon_plugin.training.BatchAugment` (``flip_prob``,
            ``brightness``, ``blur_sigma``, ``channels_last``, ...).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = True,
        non_blocking: bool = True,
        **augment: Any,
    ) -> None:
        super().__init__(mean, std, to_rgb=to_rgb, non_blocking=non_blocking)
        self.augment = BatchAugment(mean=mean, std=std, **augment)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The views as a list of (N, 3, H, W) float32, and the samples, on the host.

        Args:
            data: a collated batch; ``inputs`` is (N, views, H, W, 3) uint8 in training,
                or several of them, views of one size each.
            training: augment; otherwise convert and normalise only.

        Raises:
            ValueError: the inputs in training are not those of `TwoCrops`.
        """
        if not training:
            processed: dict[str, Any] = super().forward(data, training)
            return processed
        inputs = data["inputs"]
        sizes = [inputs] if isinstance(inputs, Tensor) else inputs
        if any(not isinstance(part, Tensor) or part.ndim != 5 for part in sizes):
            raise ValueError(
                "inputs must be (N, views, H, W, 3), as the pipeline "
                "[TwoCrops, PackInputs] and default_collate yield it, got "
                f"{describe(inputs)}; views from MultiView are augmented already and "
                "need data_preprocessor.type='SelfSupDataPreprocessor'"
            )
        # the samples stay: one copy each otherwise
        sizes = [self.cast_data(part) for part in sizes]
        if self._channel_conversion:
            sizes = [part.flip(-1) for part in sizes]
        views = self.augment([view for part in sizes for view in part.unbind(dim=1)])
        return {"inputs": views, "data_samples": data.get("data_samples")}


def describe(inputs: Any) -> str:
    """Type and shape, for a message."""
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    return f"a {type(inputs).__name__} of {len(inputs)}"
