"""mmpretrain's SimCLR pipeline with its per-pixel half on the device.

Data workers decode and crop (`TwoCrops`), the data preprocessor does the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import HOOKS, MODELS, TRANSFORMS
from torch import Tensor

from varcon_plugin.augment import BatchAugment, crops
from varcon_plugin.augment.corrupt import CorruptImageError, CorruptImages
from varcon_plugin.augment.seeding import WorkerSeed
from varcon_plugin.mmpretrain.hooks import unwrapped

__all__ = ["BatchAugmentDataPreprocessor", "EpochSeedHook", "TwoCrops"]


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
        augment: arguments of `varcon_plugin.augment.BatchAugment` (``flip_prob``,
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
        """The views as a list of (N, 3, H, W) float32, and the data samples.

        Args:
            data: a collated batch; ``inputs`` is (N, views, H, W, 3) uint8 in training.
            training: augment; otherwise convert and normalise only.

        Raises:
            ValueError: the inputs in training are not those of `TwoCrops`.
        """
        if not training:
            processed: dict[str, Any] = super().forward(data, training)
            return processed
        inputs = data["inputs"]
        if not (isinstance(inputs, Tensor) and inputs.ndim == 5):
            raise ValueError(
                "inputs must be (N, views, H, W, 3), as the pipeline "
                "[TwoCrops, PackInputs] and default_collate yield it, got "
                f"{describe(inputs)}; views from MultiView are augmented already and "
                "need data_preprocessor.type='SelfSupDataPreprocessor'"
            )
        data = self.cast_data(data)
        inputs = data["inputs"].flip(-1) if self._channel_conversion else data["inputs"]
        views = self.augment(inputs.unbind(dim=1))
        return {"inputs": views, "data_samples": data.get("data_samples")}


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Makes crops and augmentation follow from the run's seed, the rank and the epoch.

    Without it data workers draw on from where they are, and after a resume from the
    start: the first epoch's random numbers would come again.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Restart the workers' and the preprocessor's random numbers."""
        preprocessor = unwrapped(runner).data_preprocessor
        parts: list[WorkerSeed | BatchAugment] = [
            *worker_seeds(runner.train_dataloader.dataset)
        ]
        if isinstance(preprocessor, BatchAugmentDataPreprocessor):
            parts.append(preprocessor.augment)
        for part in parts:
            part.restart(runner.seed, get_rank(), runner.iter)


def worker_seeds(dataset: Any) -> Iterator[WorkerSeed]:
    """The seeds in the pipeline of a dataset and of the datasets that it wraps."""
    for step in getattr(getattr(dataset, "pipeline", None), "transforms", []):
        if isinstance(getattr(step, "worker_seed", None), WorkerSeed):
            yield step.worker_seed
    for name in ("dataset", "_dataset"):  # RepeatDataset and the like; a slice
        if hasattr(dataset, name):
            yield from worker_seeds(getattr(dataset, name))
    for part in getattr(dataset, "datasets", []):
        yield from worker_seeds(part)


def describe(inputs: Any) -> str:
    """Type and shape, for a message."""
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    return f"a {type(inputs).__name__} of {len(inputs)}"
