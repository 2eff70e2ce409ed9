"""Robustness to the corruptions of ImageNet-C (Hendrycks & Dietterich, 1903.12261).

Two sources that must not be mixed: the released ImageNet-C images, whose errors are
normalised by AlexNet's into the published mCE, and corruptions generated on the fly
from any dataset, reported as plain accuracies. In-memory corruption lacks the JPEG
compression of the released files, so the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from varcon_plugin.evaluation.images import Images, Item, Pixels, read_folder, read_rgb

__all__ = [
    "ALEXNET_ERRORS",
    "COMMON",
    "EXTRA",
    "FAMILIES",
    "SEVERITIES",
    "Corruption",
    "MeanCorruptionError",
    "ReleasedTransform",
    "mean_corruption_error",
    "read_released",
]

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
COMMON = tuple(name for family in list(FAMILIES)[:4] for name in FAMILIES[family])
EXTRA = FAMILIES["extra"]  # for validation; not part of mCE
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels a side that the library accepts

# Mean over the five severities, from google-research/augmix, imagenet.py.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


class MeanCorruptionError(NamedTuple):
    """Errors on ImageNet-C relative to AlexNet's, in percent.

    Attributes:
        mce: mean of ``ce`` over the 15 corruptions.
        ce: for each corruption, its mean error over that of AlexNet.
    """

    mce: float
    ce: dict[str, float]


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> MeanCorruptionError:
    """The published mCE from top-1 errors on the released ImageNet-C.

    Args:
        errors: for each of the 15 common corruptions, the error rate in [0, 1] at each
            of the five severities. Others, such as the four extra ones, do not count.

    Raises:
        ValueError: a corruption or a severity is missing.
    """
    for name in COMMON:
        if len(errors.get(name, ())) != len(SEVERITIES):
            raise ValueError(
                f"mCE needs the errors of {name} at {len(SEVERITIES)} severities, got "
                f"{len(errors.get(name, ()))}"
            )
    ce = {
        name: 100 * sum(errors[name]) / len(SEVERITIES) / ALEXNET_ERRORS[name]
        for name in COMMON
    }
    return MeanCorruptionError(sum(ce.values()) / len(ce), ce)


class Corruption(NamedTuple):
    """A corruption of the pixels that an encoder sees, by the imagecorruptions library.

    Its severities are those of ImageNet-C, made for 224 pixels; the benchmarks for
    CIFAR use others. Images below 32 pixels, which the library refuses, are enlarged
    by a whole factor, corrupted and averaged back, which weakens noise.

    Attributes:
        name: one of `COMMON` and `EXTRA`.
        severity: 1 to 5.
        seed: with the position of an image, it fixes what happens to it: neither the
            batch size nor the number of processes matters.
    """

    name: str
    severity: int
    seed: int = 0

    def __call__(self, pixels: Pixels, index: int) -> Pixels:
        """Corrupt ``pixels`` (H, W, 3), those of the image at position ``index``."""
        from imagecorruptions import corrupt  # a second, and only here

        factor = -(-SMALLEST // min(pixels.shape[:2]))
        large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        position = (COMMON + EXTRA).index(self.name)
        entropy = [self.seed, position, self.severity, index]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        own = {"seed": seed} if self.name in OWN_SEED else {}
        try:
            with numpy_seed(seed), np.errstate(invalid="raise"):
                corrupted = corrupt(large, self.severity, self.name, **own)
        except FloatingPointError:  # 0 / 0: no drop of spatter hit this small image
            corrupted = large
        if factor == 1:
            return np.asarray(corrupted, dtype=np.uint8)
        height, width = pixels.shape[:2]
        blocks = corrupted.reshape(height, factor, width, factor, 3)
        return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)


OWN_SEED = ("glass_blur", "impulse_noise")  # the others draw from numpy's global state


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and restore it."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class ReleasedTransform:
    """The released files as the authors evaluate them: a centre crop of 224 pixels.

    They are 224 x 224 already: resizing first, as for clean images, gives other
    numbers.
    """

    def __call__(self, item: Item) -> Tensor:
        """The image in ``item``, (3, 224, 224), uint8, RGB."""
        pixels = np.asarray(read_rgb(item))
        top, left = ((side - 224) // 2 for side in pixels.shape[:2])
        if min(top, left) < 0:
            raise ValueError(f"expected 224 pixels a side, got {pixels.shape}: {item}")
        crop = pixels[top : top + 224, left : left + 224]
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)

    def __repr__(self) -> str:
        return "ReleasedTransform(224)"


def read_released(
    root: Path, name: str, severity: int, classes: Sequence[str]
) -> Images:
    """Released images of one corruption: ``root/[family/]name/severity/<wnid>/*``.

    Args:
        root: of the extracted archives.
        name: of the corruption.
        severity: 1 to 5.
        classes: of the training split. Where they are not named by wnid, as in
            mmpretrain, the sorted folders are taken in their order.

    Raises:
        ValueError: the folder is missing, or its classes are not those of ``classes``.
    """
    found = [*root.glob(f"{name}/{severity}"), *root.glob(f"*/{name}/{severity}")]
    if not found:
        raise ValueError(
            f"no released images of {name} at severity {severity}: expected "
            f"{root}/{name}/{severity}/<wnid>/*.JPEG"
        )
    folders = sorted(entry.name for entry in found[0].iterdir() if entry.is_dir())
    if set(folders) <= set(classes):
        return read_folder(found[0], classes)
    if len(folders) != len(classes):
        raise ValueError(
            f"{found[0]} has {len(folders)} classes, the training split {len(classes)}"
        )
    return read_folder(found[0], folders)._replace(classes=tuple(classes))
