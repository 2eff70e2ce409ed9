"""RandAugment's operations on a batch, each image with its own, as pure functions.

Images are (N, 3, H, W), RGB, floating, in [0, 255]; a level is (N,), in [-1, 1], whose
size is the magnitude as a share of the largest. The operations and their ranges are
those of torchvision's ``RandAugment`` (https://arxiv.org/abs/1909.13719), but for
bilinear interpolation where that has the nearest pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from varcon_plugin.training.augment_plan import on_rows
from varcon_plugin.training.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)

__all__ = ["OPERATIONS", "Policy", "solarize"]

LEVELS = 256
MAX_MAGNITUDE = 30  # torchvision has 31 of them
BRIGHT = 128.0  # what solarisation inverts, in BYOL


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above ``threshold`` (N,), in [0, 255]."""
    return torch.where(images >= _column(threshold, images), 255 - images, images)


def _identity(images: Tensor, level: Tensor) -> Tensor:
    return images


def _warp(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Sample at ``rows`` of an affine map (x, y, 1) in pixels from the centre."""
    height, width = images.shape[2:]
    (xx, xy, x0), (yx, yy, y0) = rows
    aspect = height / width
    theta = torch.stack(
        (
            torch.stack((xx, xy * aspect, 2 * x0 / width), dim=1),
            torch.stack((yx / aspect, yy, 2 * y0 / height), dim=1),
        ),
        dim=1,
    ).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _shear_x(images: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    # torchvision turns about the top left corner
    centre = 0.3 * level * images.shape[2] / 2
    return _warp(images, [[one, 0.3 * level, centre], [zero, one, zero]])


def _shear_y(images: Tensor, level: Tensor) -> Tensor:
    return _shear_x(images.transpose(2, 3), level).transpose(2, 3)


def _translate_x(images: Tensor, level: Tensor) -> Tensor:
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    shift = -(level * (150 / 331) * images.shape[3]).trunc()
    return _warp(images, [[one, zero, shift], [zero, one, zero]])


def _translate_y(images: Tensor, level: Tensor) -> Tensor:
    return _translate_x(images.transpose(2, 3), level).transpose(2, 3)


def _rotate(images: Tensor, level: Tensor) -> Tensor:
    angle = level * math.radians(30)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(level)
    return _warp(images, [[cos, -sin, zero], [sin, cos, zero]])


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return adjust_brightness(images, 1 + 0.9 * level)


def _color(images: Tensor, level: Tensor) -> Tensor:
    return adjust_saturation(images, 1 + 0.9 * level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    return adjust_contrast(images, 1 + 0.9 * level)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    kernel = images.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()  # the border stays
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=3)
    factor = _column(1 + 0.9 * level, images)
    return (smooth + factor * (images - smooth)).clamp_(0, 255)


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    step = _column(2 ** (4 * level.abs()).round(), images)  # 8 bits down to 4
    return (images / step).floor_() * step


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    return solarize(images, 255 * (1 - level.abs()))


def _autocontrast(images: Tensor, level: Tensor) -> Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    scale = 255 / (high - low).masked_fill(flat, 255)
    return (images - low.masked_fill(flat, 0)) * scale


def _equalize(images: Tensor, level: Tensor) -> Tensor:
    """Each channel's grey levels spread evenly, as Pillow does it."""
    values = images.long().clamp_(0, LEVELS - 1).flatten(2)
    counts = values.new_zeros(*values.shape[:2], LEVELS)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = values.amax(dim=2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, last)) // (LEVELS - 1)
    before = counts.cumsum(dim=2) - counts
    table = (before + step // 2) // step.clamp(min=1)
    equal = table.clamp_(0, LEVELS - 1).gather(2, values).to(images).view_as(images)
    return torch.where(step[..., None] == 0, images, equal)


OPERATIONS: tuple[Callable[..., Tensor], ...] = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _color,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)


class Policy(NamedTuple):
    """What is done to each of N images before the colours; on the host.

    Attributes:
        solarized: (N,) bool.
        operations: (N, K), positions in `OPERATIONS`, one after the other.
        levels: (N, K), their levels.
    """

    solarized: Tensor
    operations: Tensor
    levels: Tensor

    @classmethod
    def draw(
        cls,
        count: int,
        solarize_prob: float,
        rand_augment: tuple[int, int] | None,
        generator: torch.Generator,
    ) -> Policy:
        """For ``count`` images, from a generator on the CPU."""
        number, magnitude = rand_augment or (0, 0)
        shape = (count, number)
        signs = 2 * torch.randint(2, shape, generator=generator) - 1
        return cls(
            torch.rand(count, generator=generator) < solarize_prob,
            torch.randint(len(OPERATIONS), shape, generator=generator),
            magnitude / MAX_MAGNITUDE * signs,
        )

    def apply(self, images: Tensor, rows: slice) -> Tensor:
        """``images[rows]`` (N, 3, H, W), uint8 RGB, with what is done to these rows."""
        pixels = images[rows].float()
        turns = zip(self.operations[rows].T, self.levels[rows].T, strict=True)
        for chosen, levels in turns:
            for index, operation in enumerate(OPERATIONS[1:], 1):  # 0 does nothing
                which = (chosen == index).nonzero()[:, 0]
                there = which.to(images.device)
                level = levels[which].to(pixels)
                pixels = on_rows(pixels, there, partial(operation, level=level))
        which = self.solarized[rows].nonzero()[:, 0].to(images.device)
        bright = torch.full((len(which),), BRIGHT, device=images.device)
        pixels = on_rows(pixels, which, partial(solarize, threshold=bright))
        return pixels.round().to(torch.uint8)


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images)[:, None, None, None]
