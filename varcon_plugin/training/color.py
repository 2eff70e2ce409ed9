"""Per-sample colour and blur operations on a batch, as pure functions.

Images are (N, 3, H, W), RGB, floating, in [0, 255]; a factor is (N,), one a sample.
`adjust_brightness`, `adjust_contrast`, `adjust_saturation` and `grayscale` say what
`varcon_plugin.training.augment_plan` does as one product for all images.
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
MAX_MATRIX_ON_CPU = 64  # pixels a side, on one core with AMX


def grayscale(images: Tensor) -> Tensor:
    """The luma of RGB images, (N, 1, H, W)."""
    return luma(images)


def luma(colours: Tensor) -> Tensor:
    """Of R, G, B along dimension 1, which stays: (N, 1, ...)."""
    red, green, blue = torch.split(colours, 1, dim=1)
    found: Tensor = red * LUMA[0]
    return found.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


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
    share that falls from 1 to 0 between one and two sixths of a turn from the channel's
    own hue.
    """
    red, green, blue = images.unbind(dim=1)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    second = (green < blue).to(images.dtype)
    other = (red < high).to(images.dtype)
    middle, value = torch.minimum(red, high), torch.maximum(red, high)
    turns = middle - low
    torch.minimum(low, middle, out=low)
    chroma = value.sub_(low).mul_(6)
    turns /= chroma.clamp(min=torch.finfo(images.dtype).tiny)  # from the nearest third
    turns.addcmul_(second, (2 * other).sub_(1)).sub_(other, alpha=1 / 3).abs_()
    thirds = torch.arange(3, device=images.device, dtype=images.dtype) / 3
    start = factor.to(images)[:, None] - thirds
    distance = turns[:, None] + start[:, :, None, None]
    distance.sub_(distance.round()).abs_().clamp_(1 / 6, 1 / 3)
    low.add_(chroma, alpha=1 / 3)
    return torch.addcmul(low[:, None], distance, chroma[:, None], value=-1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by its own ``sigma`` (N,), in pixels, > 0.

    Three box filters with fractional edges and replicated borders along each axis, the
    approximation that Pillow's ``GaussianBlur`` computes. Keep ``sigma`` on the host:
    the size of the filter is read from it.
    """
    return blur_boxes(images, box_sums(sigma).to(images))


def box_sums(sigma: Tensor) -> Tensor:
    """One box of width sqrt(12 variance + 1) a sample: sums of its first weights.

    `whole` pixels on each side of the centre count fully, the next ones by `fraction`,
    chosen so that `BLUR_PASSES` passes have the variance of the Gaussian. (N, K + 1)
    from 0 to 1, in float32, for K weights.
    """
    variance = sigma.double() ** 2 / BLUR_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction /= 6 * (variance - (whole + 1) ** 2)
    radius = int(whole.max()) + 1 if len(sigma) else 1
    distance = torch.arange(-radius, radius + 1, device=sigma.device).abs()
    whole, fraction = whole[:, None], fraction[:, None]
    taps = (distance <= whole) + fraction * (distance == whole + 1)
    sums = taps.cumsum(dim=1) / taps.sum(dim=1, keepdim=True)
    return F.pad(sums, (1, 0)).float()


def blur_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """`gaussian_blur` with the filters of `box_sums`, both on one device.

    As a product with the matrix of all passes, borders included, along each axis: one
    read and one write, where passes take dozens. Large images on a CPU take the passes,
    which stay in its cache and multiply less.
    """
    if images.device.type == "cpu" and max(images.shape[2:]) > MAX_MATRIX_ON_CPU:
        taps = boxes.diff(dim=1)[..., None, None, None]
        for axis in (3, 2):
            for _ in range(BLUR_PASSES):
                images = _filter(images, taps, axis)
        return images
    count, channels, height, width = images.shape
    across = _blur_matrix(boxes, width)
    down = across if height == width else _blur_matrix(boxes, height)
    flat = images.reshape(count, -1, width)
    half = torch.bmm(flat, across.transpose(1, 2)).view(images.shape)
    blurred = torch.empty_like(half)
    for channel in range(channels):
        torch.bmm(down, half[:, channel], out=blurred[:, channel])
    return blurred


def _blur_matrix(boxes: Tensor, length: int) -> Tensor:
    """All passes along an axis: (N, length, length), what each output takes of each.

    The first and last pixel stand for all beyond them.
    """
    end = boxes.shape[1] - 1
    at = torch.arange(length, device=boxes.device)
    before = at - at[:, None] + end // 2  # weights to the left of each input
    after = (before + 1).clamp(0, end)
    before = before.clamp(0, end)
    before[:, 0] = 0
    after[:, -1] = end
    once = boxes[:, after] - boxes[:, before]
    return torch.bmm(torch.bmm(once, once), once)


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
