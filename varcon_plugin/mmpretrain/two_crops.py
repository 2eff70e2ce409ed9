"""Decoding and cropping, all that data workers do in a pipeline with `BatchAugment`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.logging import print_log
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from varcon_plugin.training import crops
from varcon_plugin.training.damaged import CorruptImageError, CorruptImages
from varcon_plugin.training.seeding import WorkerSeed

__all__ = ["TwoCrops"]


@TRANSFORMS.register_module()
class TwoCrops(BaseTransform):
    """Decode ``img_path`` and take random resized crops; in place of ``MultiView``.

    Leaves ``img`` as (views, H, W, 3) uint8 in mmcv's channel order, BGR, for
    `BatchAugmentDataPreprocessor`. An ``img`` that the dataset holds in memory is
    cropped instead. Arguments are named as in mmpretrain's ``RandomResizedCrop``.

    A damaged file is logged and becomes None, for which mmengine's datasets draw
    another image.

    Args:
        scale: height and width of a crop, or both as one number.
        crop_ratio_range: smallest and largest share of the image's area.
        aspect_ratio_range: smallest and largest width / height.
        num_views: crops an image.
        max_corrupt: how many different files may be damaged, on each rank, before it
            is an error.
        backend_args: where the files are, for mmengine's file client.
        keep: decoded images stay in memory, of each process that reads them: for small
            images, read without data workers.
    """

    def __init__(
        self,
        scale: int | tuple[int, int] = 224,
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        num_views: int = 2,
        max_corrupt: int = 100,
        backend_args: dict[str, Any] | None = None,
        keep: bool = False,
    ) -> None:
        self.crops = crops.TwoCrops(
            scale,
            scale=crop_ratio_range,
            ratio=aspect_ratio_range,
            num_views=num_views,
            order="BGR",
        )
        self.corrupt = CorruptImages(max_corrupt)
        self.backend_args = backend_args
        self.kept: dict[str, Tensor] | None = {} if keep else None

    @property
    def worker_seed(self) -> WorkerSeed:
        """What `EpochSeedHook` restarts."""
        return self.crops.worker_seed

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Replace or set ``img``; None if the file is damaged.

        Raises:
            RuntimeError: more than ``max_corrupt`` files are damaged.
        """
        try:
            if "img" in results:
                image = torch.as_tensor(results["img"]).permute(2, 0, 1)
            else:
                image = self._read(results["img_path"])
            results["img"] = torch.stack(self.crops(image))
        except CorruptImageError as error:
            self._report(CorruptImageError(error.reason, results["img_path"]))
            return None
        results["img_shape"] = self.crops.size
        return results

    def _read(self, path: str) -> Tensor:
        if self.kept is not None and path in self.kept:
            return self.kept[path]
        data: bytes = fileio.get(path, backend_args=self.backend_args)
        image = crops.decode(data, self.crops.order)
        if self.kept is not None:
            self.kept[path] = image
        return image

    def _report(self, error: CorruptImageError) -> None:
        message = self.corrupt.report(error)
        if message is not None:  # as an error, for other ranks print nothing less
            print_log(message, logger="current", level=logging.ERROR)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(scale={self.crops.size}, "
            f"crop_ratio_range={self.crops.scale}, "
            f"aspect_ratio_range={self.crops.ratio}, "
            f"num_views={self.crops.num_views}, max_corrupt={self.corrupt.limit})"
        )
