"""What happens to a batch of images, as few numbers, and its execution on any device.

Brightness, contrast and saturation are linear in R, G, B up to the clamp after each, as
are grayscale and normalisation: a 3 x 3 matrix for each image, and a shift. So one
product, one sum and one clamp in each of the four turns of the colour jitter serve all
images at once, whatever is next in the order of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varcon_plugin.training.color import LUMA, adjust_hue, blur_boxes, box_sums, luma

__all__ = ["AugmentParameters", "Plan", "apply_plan", "make_plans", "upload"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # the factor with which each adjustment does nothing


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


class Plan(NamedTuple):
    """The same as products and sums, ready for a device.

    Attributes:
        matrices: (5, N, 3, 3), of R, G, B: of the four turns, then of what is last.
        gain: (4, N), how much of the mean luma each turn adds.
        shift: (3, 1), what is added last.
        hue: (N,), in turns of the colour wheel.
        flip: rows to mirror.
        blur: rows to blur.
        boxes: of the rows to blur, see `box_sums`.
        hues: for each turn, the rows whose hue is next.
        acts: what there is to do at all: for each turn whether there are matrices and
            whether there is a gain; then whether there are last matrices.
    """

    matrices: Tensor
    gain: Tensor
    shift: Tensor
    hue: Tensor
    flip: Tensor
    blur: Tensor
    boxes: Tensor
    hues: tuple[Tensor, ...]
    acts: tuple[tuple[bool, bool], ...]


def make_plans(
    parameters: AugmentParameters,
    chunk: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[Plan]:
    """Plans for ``chunk`` images each, on the host.

    Args:
        parameters: of N images.
        chunk: images to be handled at a time, >= 1.
        mean: of R, G, B in [0, 255], to normalise with at the end; or None.
        std: likewise.
    """
    flip, jitter, order, factors, gray, blur, sigma = parameters
    unit, grey = torch.eye(3), torch.tensor(LUMA).expand(3, 3)
    active = jitter[:, None] & (factors != torch.tensor(IDENTITY))
    scale = torch.where(active, factors, torch.tensor(IDENTITY))
    own = scale[..., None, None] * unit  # (N, 4, 3, 3) by adjustment
    own[:, SATURATION] += (1 - scale[:, SATURATION, None, None]) * grey
    own[:, HUE] = unit
    gain = torch.zeros_like(scale)
    gain[:, CONTRAST] = 1 - scale[:, CONTRAST]
    last = torch.where(gray[:, None, None], grey, unit)
    shift = torch.zeros(3, 1)
    if mean is not None and std is not None:
        inverse = 1 / torch.tensor(std, dtype=torch.float32)[:, None]
        last = inverse * last
        shift = -torch.tensor(mean, dtype=torch.float32)[:, None] * inverse
    images = torch.arange(len(order))[:, None]
    matrices = torch.cat([own[images, order].transpose(0, 1), last[None]])
    gain, acting = gain[images, order].T, active[images, order].T  # by turn
    hues, contrasts = acting & (order.T == HUE), acting & (order.T == CONTRAST)
    boxes = box_sums(sigma)
    plans = []
    for start in range(0, len(order), chunk):
        rows = slice(start, start + chunk)
        linear = (acting & ~hues)[:, rows].any(dim=1).tolist()
        contrast = contrasts[:, rows].any(dim=1).tolist()
        ends = mean is not None or bool(gray[rows].any())
        plans.append(
            Plan(
                matrices[:, rows],
                gain[:, rows],
                shift,
                factors[rows, HUE],
                flip[rows].nonzero()[:, 0],
                blur[rows].nonzero()[:, 0],
                boxes[rows][blur[rows]],
                tuple(turn.nonzero()[:, 0] for turn in hues[:, rows]),
                (*zip(linear, contrast, strict=True), (ends, mean is not None)),
            )
        )
    return plans


def upload(
    plans: Sequence[Plan], device: torch.device, dtype: torch.dtype
) -> list[Plan]:
    """The plans on ``device``, by a single copy for which the host does not wait."""
    parts = [x for plan in plans for x in (*plan[:7], *plan.hues)]
    flat = torch.cat([part.flatten().float() for part in parts])  # rows < 2^24: exact
    if device.type == "cuda":
        flat = flat.pin_memory()
    flat = flat.to(device, non_blocking=True)
    pieces = torch.split(flat, [part.numel() for part in parts])
    there = iter(
        piece.view(part.shape).to(dtype if part.is_floating_point() else part.dtype)
        for piece, part in zip(pieces, parts, strict=True)
    )
    uploaded = []
    for plan in plans:
        single: dict[str, Any] = {name: next(there) for name in Plan._fields[:7]}
        hues = tuple(next(there) for _ in plan.hues)
        uploaded.append(plan._replace(**single, hues=hues))
    return uploaded


def apply_plan(images: Tensor, plan: Plan) -> Tensor:
    """Follow a plan that is where the images are, in its dtype.

    Args:
        images: (N, 3, H, W), uint8 RGB; left alone.
        plan: of these N images.

    Returns:
        (N, 3, H, W), contiguous.
    """
    shape, dtype = images.shape, plan.matrices.dtype
    pixels = images.to(dtype, memory_format=torch.contiguous_format, copy=True)
    pixels = on_rows(pixels, plan.flip, lambda rows: rows.flip(-1))
    for turn, (linear, contrast) in enumerate(plan.acts[:4]):
        if linear:
            flat = pixels.view(*shape[:2], -1)
            level = luma(flat.mean(dim=2)) * plan.gain[turn][:, None]
            flat = torch.bmm(plan.matrices[turn], flat)
            if contrast:
                flat.add_(level[:, None])
            pixels = flat.clamp_(0, 255).view(shape)
        hue = plan.hue[plan.hues[turn]]
        pixels = on_rows(pixels, plan.hues[turn], partial(adjust_hue, factor=hue))
    if plan.acts[4][0]:
        flat = torch.bmm(plan.matrices[4], pixels.view(*shape[:2], -1))
        pixels = flat.add_(plan.shift).view(shape)
    # Weights of sum 1: before or after normalising is the same.
    return on_rows(pixels, plan.blur, partial(blur_boxes, boxes=plan.boxes))


def on_rows(
    images: Tensor, rows: Tensor, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """``images`` with ``function`` applied to ``rows`` of them, without waiting."""
    if len(rows) == 0:
        return images
    if len(rows) == len(images):  # no copies where images come one by one
        return function(images)
    return images.index_copy_(0, rows, function(images[rows]))
