"""`TwoCrops`: what is left for a data worker: decode a file, cut and resize its crops.

Needs Pillow and simplejpeg, which both adapters bring.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from varcon_plugin.training.decoding import (
    ChannelOrder,
    decode,
    from_pillow,
    read_image,
)
from varcon_plugin.training.seeding import WorkerSeed

__all__ = ["TwoCrops", "crop_box", "resized_crop"]

ATTEMPTS = 10  # torchvision and mmpretrain


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, drawn from `random`.

    The distribution of torchvision's and mmpretrain's RandomResizedCrop: a share of the
    area, a log-uniform aspect ratio, any position; after ten attempts that do not
    fit, the largest central crop whose ratio is allowed.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        target = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(*log_ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(
    image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]
) -> Tensor:
    """Cut ``box`` from (3, H, W) uint8 and resize it, bilinear with antialiasing.

    Within one grey level of Pillow's bilinear resize.
    """
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    crop = crop.contiguous(memory_format=torch.channels_last)  # the fast path
    return F.interpolate(crop, size, mode="bilinear", antialias=True)[0]


class TwoCrops:
    """Random resized crops of one image: a list of (H, W, 3) uint8 tensors.

    They stay uint8 and in the decoder's memory order until they are on the device,
    where `BatchAugment` does the rest. With torchvision's folders::

        ImageFolder(root, loader=str, transform=TwoCrops(224))

    hands over the path, so that the decoder here does the work; any loader that yields
    Pillow images works too, slower.

    Args:
        size: height and width of a crop, or both as one number.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        num_views: crops an image.
        small_views: smaller crops beside them, as in SwAV's multi-crop
            (https://arxiv.org/abs/2006.09882).
        small_size: as ``size``, of those.
        small_scale: as ``scale``, of those.
        order: channel order of the crops; ``"RGB"`` is what `BatchAugment` takes.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        num_views: int = 2,
        small_views: int = 0,
        small_size: int | tuple[int, int] = 96,
        small_scale: tuple[float, float] = (0.05, 0.4),
        order: ChannelOrder = "RGB",
    ) -> None:
        self.size = pair("size", size)
        self.small_size = pair("small_size", small_size)
        for name, (low, high) in (("scale", scale), ("small_scale", small_scale)):
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name} must be (low, high) with 0 < low <= high <= 1, got "
                    f"{(low, high)}"
                )
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"ratio must be (low, high) with 0 < low <= high, got {ratio}"
            )
        if num_views < 1:
            raise ValueError(f"num_views must be >= 1, got {num_views}")
        if small_views < 0:
            raise ValueError(f"small_views must be >= 0, got {small_views}")
        if order not in ("RGB", "BGR"):
            raise ValueError(f'order must be "RGB" or "BGR", got {order!r}')
        self.scale, self.ratio = scale, ratio
        self.small_scale = small_scale
        self.num_views, self.small_views, self.order = num_views, small_views, order
        self.worker_seed = WorkerSeed()

    def __call__(
        self, image: str | Path | bytes | Image.Image | Tensor
    ) -> list[Tensor]:
        """Crops of a file, of its bytes, or of a decoded image; the small ones last.

        Args:
            image: a tensor is (3, H, W) uint8, in that ``order``.

        Raises:
            CorruptImageError: it cannot be read or decoded (docs/data.md).
        """
        self.worker_seed.apply()
        if isinstance(image, Tensor):
            pixels = image
        elif isinstance(image, Image.Image):
            pixels = from_pillow(image, self.order)
        elif isinstance(image, bytes):
            pixels = decode(image, self.order)
        else:
            pixels = read_image(image, self.order)
        height, width = pixels.shape[1:]
        kinds = [(self.scale, self.size)] * self.num_views
        kinds += [(self.small_scale, self.small_size)] * self.small_views
        return [
            resized_crop(
                pixels, crop_box(height, width, scale, self.ratio), size
            ).permute(1, 2, 0)
            for scale, size in kinds
        ]


def pair(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, each >= 1."""
    both = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(both) < 1:
        raise ValueError(f"{name} must be >= 1, got {size}")
    return both
