"""Backbones by name, the same in every door: timm's look-up and the stem for CIFAR."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["create_timm_model", "shrink_stem"]


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
