"""Encoders and datasets that need no adapter: timm models, folders, digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varcon_plugin.checkpoints.backbones import create_for_weights, fixed_side
from varcon_plugin.checkpoints.weights import fill, read_weights
from varcon_plugin.evaluation.images import (
    Encoder,
    Images,
    Item,
    Splits,
    read_folder,
    read_rgb,
)
from varcon_plugin.training.digits import load_digits_split
from varcon_plugin.training.folders import split_folder

__all__ = [
    "ImageTransform",
    "NormalizedEncoder",
    "cifar",
    "digits",
    "folder",
    "timm_encoder",
]


class NormalizedEncoder(nn.Module):
    """Normalises uint8 images, encodes them, and pools the result to (N, D).

    Args:
        backbone: images (N, 3, H, W) to features (N, D), or to a map (N, D, H', W'),
            which is averaged.
        mean: of the channels, in [0, 1].
        std: of the channels, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of uint8 RGB ``images`` (N, 3, H, W)."""
        features: Tensor = self.backbone((images.float() - self.mean) / self.std)
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features


class ImageTransform:
    """Reads an image as RGB and hands it to a torchvision transform.

    Args:
        transform: PIL image to uint8 tensor (3, H, W).
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, item: Item) -> Tensor:
        """``item`` as the encoder takes it."""
        tensor: Tensor = self.transform(read_rgb(item))
        return tensor

    def __repr__(self) -> str:
        return f"RGB, {self.transform!r}"


def timm_encoder(
    name: str,
    weights: Path,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Encoder:
    """A timm model with weights from disk; nothing is downloaded.

    Args:
        name: timm model name.
        weights: torch or safetensors file, of timm's names under any prefix.
        image_size: side of the square that the model sees; None is the model's own, of
            a vision transformer that of the weights.
        mean: of R, G, B in [0, 1]; None is the model's own in timm. The file does not
            say what it was trained with.
        std: as ``mean``.
        options: further arguments of ``timm.create_model``.

    Raises:
        ValueError: timm has no such model, the weights do not fill it, or they are of
            images of another size.
    """
    from timm.data import resolve_model_data_config

    found = read_weights(weights)
    ends = ((given.split(".")[-1], tensor) for given, tensor in found.items())
    positions = dict(end for end in ends if end[0] == "pos_embed")
    model = create_for_weights(name, positions, pretrained=False, **options)
    fill(model, found, str(weights))
    side = fixed_side(model)
    if side and image_size not in (None, side):
        raise ValueError(
            f"image_size must be {side}, that of {weights} of a {name}, got "
            f"{image_size}"
        )
    config = resolve_model_data_config(model)
    mean, std = mean or config["mean"], std or config["std"]
    about = {
        "source": "timm",
        "model": name,
        "checkpoint": str(weights),
        "normalisation": normalisation(mean, std),
    }
    return Encoder(
        NormalizedEncoder(model, mean, std),
        eval_transform(config, image_size or side),
        about,
    )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """In words, of channels in [0, 1]."""
    means, deviations = (
        ", ".join(f"{value:.4g}" for value in values) for values in (mean, std)
    )
    return f"mean ({means}), standard deviation ({deviations}) of channels in [0, 1]"


def eval_transform(config: dict[str, Any], image_size: int | None) -> ImageTransform:
    """Timm's own evaluation transform up to the uint8 tensor.

    Args:
        config: as timm's ``resolve_model_data_config`` returns it.
        image_size: in place of the model's. At 64 pixels and less, images are resized
            to it; above, the model's share of the resized image is cropped.
    """
    from timm.data import create_transform

    if image_size is not None:
        config = config | {"input_size": (3, image_size, image_size)}
        if image_size <= 64:
            config = config | {"crop_pct": 1.0}
    return ImageTransform(
        create_transform(**config, is_training=False, normalize=False)
    )


def digits() -> Splits:
    """scikit-learn's bundled handwritten digits, 8 x 8, grey as RGB."""
    classes = tuple(str(digit) for digit in range(10))

    def split(images: Any, labels: Any) -> Images:
        pixels = np.repeat(images[..., None], 3, axis=3)
        return Images(list(pixels), torch.from_numpy(labels), classes)

    train, test = load_digits_split("train"), load_digits_split("test")
    return Splits(split(*train), split(*test), None, "digits")


def cifar(name: str, root: Path) -> Splits:
    """``cifar10`` or ``cifar100``, as torchvision keeps or downloads it in ``root``."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100

    def split(train: bool) -> Images:
        found = kind(str(root), train=train, download=True)
        labels = torch.tensor(found.targets)
        return Images(list(found.data), labels, tuple(found.classes))

    return Splits(split(train=True), split(train=False), None, name)


def folder(root: Path) -> Splits:
    """Images of ``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val``).

    With both ``test`` and ``val``, the latter is the validation split.

    Raises:
        ValueError: a split is missing, or as `read_folder`.
    """
    train = read_folder(split_folder(root, "train"))
    tested, other = (split_folder(root, split) for split in ("test", "val"))
    test = read_folder(tested, train.classes)
    validation = None if other == tested else read_folder(other, train.classes)
    return Splits(train, test, validation, root.resolve().name)
