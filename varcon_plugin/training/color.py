"""Per-sample colour and blur operations on a batch, as pure functions.

Images are (N, 3, H, W), RGB, floating, in [0, 255]; a factor is (N,), one a sample.
Results stay in float, where Pillow truncates to 8 bits after each operation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "grayscale",
]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision
BLUR_PASSES = 3  # Pillow's ImageFilter.GaussianBlur


def grayscale(images: Tensor) -> Tensor:
    """The luma of RGB images, (N, 1, H, W)."""
    red, green, blue = images.unbind(dim=1)
    luma = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma.unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image."""
    return (images * _column(factor, images)).clamp_(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image: 0 is flat, 1 the image."""
    return _blend(images, grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma of each pixel: 0 is grey, 1 the image."""
    return _blend(images, grayscale(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Rotate the hue in HSV by ``factor`` turns, in [-0.5, 0.5].

    Value and chroma do not change, so each channel is ``low + chroma * share`` with a
    share in [0, 1] that the rotated hue alone decides.
    """
    red, green, blue = images.unbind(dim=1)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    is_red = value == red
    is_green = (value == green) & ~is_red
    is_blue = ~(is_red | is_green)
    sixths = (green - blue) * is_red  # the hue in sixths of a turn; products, for
    sixths += (blue - red) * is_green  # torch.where costs several times as much
    sixths += (red - green) * is_blue
    sixths /= chroma.clamp(min=torch.finfo(images.dtype).tiny)
    sixths = sixths.add_(is_green, alpha=2).add_(is_blue, alpha=4)
    sixths += 6 * _column(factor, images)[:, 0]
    sixths -= 6 * (sixths / 6).floor_()
    shares = (
        (sixths - 3).abs_().sub_(1),
        2 - (sixths - 2).abs_(),
        2 - (sixths - 4).abs_(),
    )
    rotated = torch.empty_like(images)
    for channel, share in enumerate(shares):
        torch.addcmul(low, chroma, share.clamp_(0, 1), out=rotated[:, channel])
    return rotated


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by its own ``sigma`` (N,), in pixels, > 0.

    Three box filters with fractional edges and replicated borders along each axis, the
    approximation that Pillow's ``GaussianBlur`` computes. Keep ``sigma`` on the host:
    the size of the filter is read from it.
    """
    taps = _box_taps(sigma.double()).to(images)[..., None, None, None]
    for axis in (3, 2):
        for _ in range(BLUR_PASSES):
            images = _filter(images, taps, axis)
    return images


def _box_taps(sigma: Tensor) -> Tensor:
    """One box of width sqrt(12 variance + 1) a sample: (N, K) weights of sum 1.

    `whole` pixels on each side of the centre count fully, the next ones by `fraction`,
    chosen so that `BLUR_PASSES` passes have the variance of the Gaussian.
    """
    variance = sigma**2 / BLUR_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction /= 6 * (variance - (whole + 1) ** 2)
    radius = int(whole.max()) + 1
    distance = torch.arange(-radius, radius + 1, device=sigma.device).abs()
    whole, fraction = whole[:, None], fraction[:, None]
    taps = (distance <= whole) + fraction * (distance == whole + 1)
    return taps / taps.sum(dim=1, keepdim=True)


def _filter(images: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Correlate with ``taps`` (N, K, 1, 1, 1) along ``axis``, borders replicated."""
    length, radius = images.shape[axis], taps.shape[1] // 2
    border = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
    padded = F.pad(images, border, mode="replicate")
    filtered = padded.narrow(axis, 0, length) * taps[:, 0]
    for k in range(1, taps.shape[1]):
        filtered.addcmul_(padded.narrow(axis, k, length), taps[:, k])
    return filtered


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = _column(factor, images)
    return (images * factor).addcmul_(other, 1 - factor).clamp_(0, 255)


def _column(factor: Tensor, images: Tensor) -> Tensor:
    return factor.to(images)[:, None, None, None]
