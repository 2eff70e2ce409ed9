"""`BatchAugment`: the per-pixel half of two-view augmentation, on a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from varcon_plugin.distributed import active_group, rank_of
from varcon_plugin.training.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
)
from varcon_plugin.training.seeding import mix_seeds

__all__ = ["AugmentParameters", "BatchAugment", "apply_augment"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # the factor with which each adjustment does nothing
# Pixels handled at once: on a CPU they fit its cache, on a GPU they bound the memory.
CHUNK = {"cpu": 224 * 224}
DEFAULT_CHUNK = 256 * 224 * 224


class AugmentParameters(NamedTuple):
    """What happens to each of N images; on the host.

    ``flip``, ``jitter``, ``gray`` and ``blur`` are (N,) bool. ``order`` (N, 4) is the
    order of brightness (0), contrast (1), saturation (2) and hue (3), ``factors``
    (N, 4) their factors in that numbering. ``sigma`` (N,) is in pixels.
    """

    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor


class BatchAugment(nn.Module):
    """Flip, colour jitter, grayscale, blur and normalisation of a batch of crops.

    The SimCLR augmentation (https://arxiv.org/abs/2002.05709, appendix A) after the
    crop, with the distribution of mmpretrain's and lightly's per-image transforms:
    every image of every view draws its own parameters, the order of the jitter too.
    Runs where the batch is, in float32 (also under autocast), without gradient.

    The random numbers are drawn on the host from (seed, rank, step) of `restart` and
    the number of calls since, so a batch is the same on any device. Without `restart`,
    the seed is ``torch.initial_seed()`` and the rank that of the process group.

    Args:
        flip_prob: probability of a horizontal flip.
        jitter_prob: probability of the colour jitter.
        brightness: factor drawn from U[max(0, 1 - brightness), 1 + brightness].
        contrast: as ``brightness``.
        saturation: as ``brightness``.
        hue: shift drawn from U[-hue, hue] turns, in [0, 0.5].
        grayscale_prob: probability of grayscale.
        blur_prob: probability of the Gaussian blur.
        blur_sigma: lowest and highest sigma, in pixels, drawn uniformly.
        mean: of R, G, B in [0, 255]; None to leave the values in [0, 255].
        std: of R, G, B in [0, 255].
        channels_last: memory layout of the result.

    Raises:
        ValueError: an argument is out of range.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        *,
        flip_prob: float = 0.5,
        jitter_prob: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        grayscale_prob: float = 0.2,
        blur_prob: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.probabilities = {
            "flip_prob": flip_prob,
            "jitter_prob": jitter_prob,
            "grayscale_prob": grayscale_prob,
            "blur_prob": blur_prob,
        }
        for name, value in self.probabilities.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        strengths = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        for name, value in strengths.items():
            if value < 0 or (name == "hue" and value > 0.5):
                limit = "in [0, 0.5]" if name == "hue" else ">= 0"
                raise ValueError(f"{name} must be {limit}, got {value}")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(
                f"blur_sigma must be (low, high) with 0 < low <= high, got {blur_sigma}"
            )
        if (mean is None) != (std is None):
            raise ValueError(f"give both mean and std or neither, got {mean} and {std}")
        self.ranges = [
            (max(0.0, 1 - value), 1 + value) if name != "hue" else (-value, value)
            for name, value in strengths.items()
        ]
        self.blur_sigma = blur_sigma
        self.channels_last = channels_last
        # Not in the state dict: a checkpoint holds weights.
        for name, values in (("mean", mean), ("std", std)):
            buffer = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self._key: tuple[int, int, int] | None = None
        self._calls = 0

    def restart(self, seed: int, rank: int, step: int) -> None:
        """Let the numbers of the next calls follow from these three integers >= 0."""
        self._key, self._calls = (seed, rank, step), 0

    def draw(self, count: int, generator: torch.Generator) -> AugmentParameters:
        """Parameters for ``count`` images, from a generator on the CPU."""
        uniform = torch.rand(9, count, generator=generator)
        low, high = torch.tensor(self.ranges).unbind(dim=1)
        soft, strong = self.blur_sigma
        below = {
            name: uniform[row] < probability
            for row, (name, probability) in enumerate(self.probabilities.items())
        }
        return AugmentParameters(
            flip=below["flip_prob"],
            jitter=below["jitter_prob"],
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
            factors=low + (high - low) * uniform[4:8].T,
            gray=below["grayscale_prob"],
            blur=below["blur_prob"],
            sigma=soft + (strong - soft) * uniform[8],
        )

    # Random numbers and row indices come from the host: nothing to compile.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Augmented, normalised views, each (N, 3, H, W) float32.

        Args:
            views: each (N, H, W, 3) or (N, 3, H, W), uint8, RGB.

        Raises:
            TypeError: ``views`` is one tensor, or a view is not uint8.
            ValueError: a view has another shape.
        """
        if isinstance(views, Tensor):
            raise TypeError("views must be a sequence of batches, got one tensor")
        generator = torch.Generator().manual_seed(self._next_seed())
        return [self._augment(planar(view), generator) for view in views]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        parameters = self.draw(len(images), generator)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        augmented = torch.empty(
            images.shape, device=images.device, memory_format=layout
        )
        limit = CHUNK.get(images.device.type, DEFAULT_CHUNK)
        chunk = max(1, limit // (images.shape[2] * images.shape[3]))
        for start in range(0, len(images), chunk):
            rows = slice(start, start + chunk)
            part = AugmentParameters(*(values[rows] for values in parameters))
            pixels = apply_augment(images[rows], part)
            if self.mean is not None and self.std is not None:
                pixels = pixels.sub_(self.mean).div_(self.std)
            augmented[rows] = pixels
        return augmented

    def _next_seed(self) -> int:
        if self._key is None:
            self._key = (torch.initial_seed() % 2**63, rank_of(active_group()), 0)
        self._calls += 1
        return mix_seeds(*self._key, self._calls)


def apply_augment(images: Tensor, parameters: AugmentParameters) -> Tensor:
    """Apply given parameters to (N, 3, H, W) RGB in [0, 255]; float32 in [0, 255]."""
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    flip, jitter, order, factors, gray, blur, sigma = parameters
    images = _on_rows(images, flip, lambda rows: rows.flip(-1))
    which = torch.arange(len(ADJUSTMENTS))
    acts = jitter[:, None] & (factors != torch.tensor(IDENTITY))
    turns = (acts[:, None] & (order[:, :, None] == which)).unbind(dim=1)
    for turn in turns:  # (N, 4): the adjustment that is next in each image's order
        for adjust, mask, factor in zip(ADJUSTMENTS, turn.T, factors.T, strict=True):
            images = _on_rows(images, mask, adjust, factor)
    images = _on_rows(images, gray, lambda rows: grayscale(rows).repeat(1, 3, 1, 1))
    return _on_rows(images, blur, gaussian_blur, sigma)


def planar(images: Tensor, name: str = "views") -> Tensor:
    """(N, 3, H, W), as a view, of uint8 images that are that or (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8 in [0, 255], got {images.dtype}")
    if images.ndim == 4 and images.shape[1] == 3:
        return images
    if images.ndim == 4 and images.shape[3] == 3:
        return images.permute(0, 3, 1, 2)
    raise ValueError(
        f"{name} must be (N, H, W, 3) or (N, 3, H, W), got {tuple(images.shape)}"
    )


def _on_rows(
    images: Tensor, mask: Tensor, function: Callable[..., Tensor], *values: Tensor
) -> Tensor:
    """``images`` with ``function`` applied where ``mask`` (N,), on the host, is set."""
    rows = mask.nonzero().flatten()
    if len(rows) == 0:
        return images
    if len(rows) == len(images):  # no copies where images come one by one
        return function(images, *values)
    rows_there = rows.to(images.device, non_blocking=True)
    changed = function(images[rows_there], *(value[rows] for value in values))
    return images.index_copy_(0, rows_there, changed)
