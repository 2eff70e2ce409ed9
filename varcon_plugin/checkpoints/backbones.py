"""Backbones by name, the same in every door: timm's look-up and the stem for CIFAR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = [
    "create_for_weights",
    "create_timm_model",
    "fixed_side",
    "shrink_stem",
    "sized",
]


def create_timm_model(name: str, **options: Any) -> nn.Module:
    """A timm model without its classifier: images (N, 3, H, W) to features (N, F).

    Nothing is downloaded unless ``options`` asks for it.

    Args:
        name: timm model name; ``timm.list_models("resnet*")`` lists them.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: timm has no such model; the message lists names near it.
    """
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5])
        raise ValueError(
            f"backbone must be the name of a timm model, got {name!r}; "
            + (f"near it: {near}" if near else "timm.list_models() has all")
        )
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    return model


def create_for_weights(
    name: str, weights: Mapping[str, Tensor], **options: Any
) -> nn.Module:
    """A timm model for images of the size that ``weights`` were trained on.

    A vision transformer has a position embedding a patch, and so is of one size.

    Args:
        name: as `create_timm_model` takes it.
        weights: under timm's names.
        options: as `create_timm_model` takes them.

    Raises:
        ValueError: timm has no such model.
    """
    model = create_timm_model(name, **options)
    side = trained_side(model, weights)
    if side is None or side == fixed_side(model):
        return model
    return create_timm_model(name, **{**options, "img_size": side})


def fixed_side(model: Any) -> int | None:
    """Side of the only images that a vision transformer takes; None for any size."""
    patches: Any = getattr(model, "patch_embed", None)
    if getattr(model, "pos_embed", None) is None:
        return None
    strict = getattr(patches, "strict_img_size", False)
    return int(patches.img_size[0]) if strict and patches.img_size else None


def trained_side(model: Any, weights: Mapping[str, Tensor]) -> int | None:
    """Side of the square that weights of a ``model`` were trained on.

    None where its position embeddings, if there are any, do not tell.
    """
    own, given = getattr(model, "pos_embed", None), weights.get("pos_embed")
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if own is None or given is None or grid is None or not own.ndim == given.ndim == 3:
        return None
    patches = given.shape[1] - (own.shape[1] - math.prod(grid))  # class tokens aside
    side = math.isqrt(max(patches, 0))
    return side * model.patch_embed.patch_size[0] if side**2 == patches else None


def sized(name: str, image_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with the image size, for a model of timm's built for one size."""
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config and config.fixed_input_size and config.input_size[-1] != image_size:
        return {"img_size": image_size, **options}
    return options


def shrink_stem(model: nn.Module, name: str) -> None:
    """Give a ResNet the stem for images of 32 pixels: 3x3, no stride, no pooling.

    As SupCon and VarCon do on CIFAR. The new convolution is initialised as the one it
    replaces is by torchvision and timm.

    Args:
        model: of torchvision or timm; changed in place.
        name: what the message calls it.

    Raises:
        ValueError: the model does not start with one convolution and a max-pool.
    """
    first = getattr(model, "conv1", None)
    if not (isinstance(first, nn.Conv2d) and hasattr(model, "maxpool")):
        raise ValueError(
            f'stem="cifar" needs a ResNet that starts with one convolution and a '
            f"max-pool, which {name!r} does not; use resnet18, resnet34, resnet50, ... "
            'or stem="imagenet"'
        )
    stem = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
