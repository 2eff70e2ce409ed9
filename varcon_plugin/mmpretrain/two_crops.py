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
from varcon_plugin.training.decoding import decode, read_image
from varcon_plugin.training.seeding import WorkerSeed

__all__ = ["LoadImage", "TwoCrops"]


def read_file(path: str, backend_args: dict[str, Any] | None) -> Tensor:
    """(3, H, W) uint8, BGR, of a file on the disk or of mmengine's backends.

    Raises:
        CorruptImageError: it cannot be read or decoded; names the file.
    """
    if backend_args is None and "://" not in path:
        return read_image(path, "BGR")
    try:
        return decode(fileio.get(path, backend_args=backend_args), "BGR")
    except CorruptImageError as error:
        raise CorruptImageError(error.reason, path) from error


def log_once(corrupt: CorruptImages, error: CorruptImageError) -> None:
    """Name a damaged file in the log, where ``corrupt`` has not met it before."""
    message = corrupt.report(error)
    if message is not None:  # as an error, for other ranks print nothing less
        print_log(message, logger="current", level=logging.ERROR)


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """mmcv's ``LoadImageFromFile``, strict: read ``img_path``, BGR, uint8.

    A damaged file is logged and becomes None, for which mmengine's datasets draw
    another image; with ``max_corrupt=0``, as in a test pipeline, it is an error.

    Args:
        max_corrupt: how many different files may be damaged, on each rank, before it
            is an error.
        backend_args: where the files are, for mmengine's file client.
    """

    def __init__(
        self, max_corrupt: int = 100, backend_args: dict[str, Any] | None = None
    ) -> None:
        self.corrupt = CorruptImages(max_corrupt)
        self.backend_args = backend_args

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Set ``img``, ``img_shape`` and ``ori_shape``; None if the file is damaged.

        Raises:
            RuntimeError: more than ``max_corrupt`` files are damaged.
        """
        try:
            image = read_file(results["img_path"], self.backend_args)
        except CorruptImageError as error:
            log_once(self.corrupt, error)
            return None
        results["img"] = image.permute(1, 2, 0).numpy()
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_corrupt={self.corrupt.limit})"


@TRANSFORMS.register_module()
class TwoCrops(BaseTransform):
    """Decode ``img_path`` and take random resized crops; in place of ``MultiView``.

    Leaves ``img`` as (views, H, W, 3) uint8 in mmcv's channel order, BGR, for
    `BatchAugmentDataPreprocessor`; with small views a list of that and of theirs. An
    ``img`` that the dataset holds in memory is cropped instead. Arguments are named as
    in mmpretrain's ``RandomResizedCrop``.

    A damaged file is logged and becomes None, for which mmengine's datasets draw
    another image.

    Args:
        scale: height and width of a crop, or both as one number.
        crop_ratio_range: smallest and largest share of the image's area.
        aspect_ratio_range: smallest and largest width / height.
        num_views: crops an image.
        small_views: smaller crops beside them (multi-crop).
        small_scale: as ``scale``, of those.
        small_crop_ratio_range: as ``crop_ratio_range``, of those.
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
        small_views: int = 0,
        small_scale: int | tuple[int, int] = 96,
        small_crop_ratio_range: tuple[float, float] = (0.05, 0.4),
        max_corrupt: int = 100,
        backend_args: dict[str, Any] | None = None,
        keep: bool = False,
    ) -> None:
        self.crops = crops.TwoCrops(
            scale,
            scale=crop_ratio_range,
            ratio=aspect_ratio_range,
            num_views=num_views,
            small_views=small_views,
            small_size=small_scale,
            small_scale=small_crop_ratio_range,
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
            results["img"] = self._views(image)
        except CorruptImageError as error:
            log_once(self.corrupt, error)
            return None
        results["img_shape"] = self.crops.size
        return results

    def _views(self, image: Tensor) -> Tensor | list[Tensor]:
        views, large = self.crops(image), self.crops.num_views
        if len(views) == large:
            return torch.stack(views)
        return [torch.stack(views[:large]), torch.stack(views[large:])]

    def _read(self, path: str) -> Tensor:
        if self.kept is not None and path in self.kept:
            return self.kept[path]
        image = read_file(path, self.backend_args)
        if self.kept is not None:
            self.kept[path] = image
        return image

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(scale={self.crops.size}, "
            f"crop_ratio_range={self.crops.scale}, "
            f"aspect_ratio_range={self.crops.ratio}, "
            f"num_views={self.crops.num_views}, "
            f"small_views={self.crops.small_views}, max_corrupt={self.corrupt.limit})"
        )
