"""Datasets that mmpretrain lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmpretrain.datasets import BaseDataset, CustomDataset
from mmpretrain.registry import DATASETS

from varcon_plugin.training.digits import load_digits_split
from varcon_plugin.training.folders import (
    Split,
    class_names,
    scan_classes,
    split_folder,
)

__all__ = ["Digits", "ImageFolder"]


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


@DATASETS.register_module()
class ImageFolder(CustomDataset):
    """Images of ``data_root/train/<class>/**`` and ``val`` or ``test``, one's own.

    As ``CustomDataset``, but a folder that would be read wrongly is an error before the
    run starts (docs/data.md): pipes, links in a circle, classes without images, ....

    Args:
        data_root: local folder of the splits.
        split: ``"train"``, ``"val"`` or ``"test"``; the latter two stand in for each
            other where only one is there, and have the class ids of ``train``. Empty if
            ``data_root`` holds the classes.
        **kwargs: arguments of mmpretrain's ``CustomDataset`` (pipeline, metainfo, ...).

    Raises:
        ValueError: as `varcon_plugin.training.folders.scan_classes`, or ``metainfo``
            has another number of classes.
    """

    def __init__(
        self, data_root: str, split: Split | Literal[""] = "train", **kwargs: Any
    ) -> None:
        folder = Path(data_root).expanduser()
        self._trained: list[str] | None = None  # a split may lack some of these classes
        if split in ("val", "test") and (folder / "train").is_dir():
            self._trained = class_names(folder / "train")
        if split:
            folder = split_folder(folder, split)
        super().__init__(data_root=str(folder), **kwargs)

    def _find_samples(self) -> list[tuple[str, int]]:
        """Paths below the folder and class ids.

        Raises:
            ValueError: as the class says, or ``with_label=False``.
        """
        if not self.with_label:
            raise ValueError(
                "with_label=False: ImageFolder reads classes; take CustomDataset "
                "for images without"
            )
        found = scan_classes(self.img_prefix, self._trained)
        if self.CLASSES is None:
            self._metainfo["classes"] = found.classes
        elif len(self.CLASSES) != len(found.classes):
            raise ValueError(
                f"metainfo names {len(self.CLASSES)} classes, {self.img_prefix} holds "
                f"{len(found.classes)}"
            )
        paths = [os.path.relpath(file, self.img_prefix) for file in found.files]
        return list(zip(paths, found.labels, strict=True))
