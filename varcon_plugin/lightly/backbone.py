"""timm backbones by name."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from varcon_plugin.checkpoints.backbones import create_timm_model, shrink_stem, sized
from varcon_plugin.training.speedrun import SpeedrunNet

__all__ = ["create_backbone", "feature_dim"]


def create_backbone(
    name: str,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    image_size: int = 224,
    **kwargs: Any,
) -> nn.Module:
    """A timm model without its classifier: images in, pooled features (N, F) out.

    Args:
        name: timm model name; `timm.list_models("resnet*")` lists them. Or
            ``"speedrun"``, `SpeedrunNet`.
        stem: ``"cifar"`` replaces a ResNet's strided stem and max-pool by one 3x3
            convolution, as SupCon and VarCon do for 32-pixel images: at 224 pixels that
            takes 16 times the memory.
        image_size: side of the images in pixels, for a model that is built for one
            size, as vision transformers are.
        kwargs: of `timm.create_model`, or of `SpeedrunNet`.

    Raises:
        ValueError: timm has no such model, or it has no ResNet stem to replace.
    """
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f'stem must be "imagenet" or "cifar", got {stem!r}')
    if name == "speedrun":
        return SpeedrunNet(**kwargs)
    model = create_timm_model(name, **sized(name, image_size, kwargs))
    if stem == "cifar":
        shrink_stem(model, name)
    return model


def feature_dim(backbone: nn.Module) -> int:
    """F of a timm model; some widen their features after the pooling."""
    dim: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(dim)
