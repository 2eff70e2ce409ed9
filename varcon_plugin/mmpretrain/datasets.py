"""Datasets that mmpretrain lacks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from varcon_plugin.training.digits import load_digits_split

__all__ = ["Digits"]


@DATASETS.register_module()
class Digits(BaseDataset):
    """scikit-learn's bundled handwritten digits, 8 x 8 pixels, as BGR images.

    Args:
        split: ``"train"`` (1,347 images) or ``"test"`` (450).
        **kwargs: arguments of mmpretrain's ``BaseDataset`` (pipeline, indices, ...).
    """

    METAINFO = {"classes": [str(digit) for digit in range(10)]}  # noqa: RUF012

    def __init__(
        self, split: Literal["train", "test"] = "train", **kwargs: Any
    ) -> None:
        self.split = split
        super().__init__(ann_file="", **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One ``img`` (8, 8, 3), uint8, and its ``gt_label`` for each image."""
        images, labels = load_digits_split(self.split)
        return [
            {"img": np.repeat(image[..., None], 3, axis=2), "gt_label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
