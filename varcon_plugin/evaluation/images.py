"""Labelled images as every source delivers them, and what an encoder is asked to be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from varcon_plugin.training.damaged import CorruptImageError
from varcon_plugin.training.decoding import load_image
from varcon_plugin.training.folders import scan_classes

__all__ = [
    "Encoder",
    "ImageDataset",
    "ImageError",
    "Images",
    "Splits",
    "read_folder",
    "read_rgb",
]

Pixels: TypeAlias = npt.NDArray[np.uint8]
Item: TypeAlias = Path | Pixels


class Encoder(NamedTuple):
    """What is evaluated.

    Attributes:
        module: uint8 RGB images (N, 3, H, W) to features (N, D); normalisation of the
            pixels and pooling are part of it.
        transform: a file or an RGB array (H, W, 3) to the uint8 RGB tensor (3, H, W)
            that ``module`` takes. Its ``repr`` has to say what it does: cached features
            are found by it.
        about: where it comes from, for the report.
        projection: features (N, D) to the embeddings that the loss was trained on;
            None where the checkpoint has no projection head.
    """

    module: nn.Module
    transform: Callable[[Item], Tensor]
    about: dict[str, Any]
    projection: nn.Module | None = None


class Images(NamedTuple):
    """A split of a dataset.

    Attributes:
        items: files, or RGB arrays (H, W, 3), uint8.
        labels: (N,) class ids, or (N, C) of 0 and 1 where an image has several.
        classes: names; the class ids are their positions.
    """

    items: Sequence[Item]
    labels: Tensor
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Changes with any label, any pixel of an array, and any file touched."""
        digest = hashlib.sha256(repr(self.classes).encode())
        digest.update(self.labels.numpy().tobytes())
        for item in self.items:
            if isinstance(item, Path):
                status = item.stat()
                about = f" {status.st_size} {status.st_mtime_ns}"
                digest.update(os.fsencode(item) + about.encode())
            else:
                digest.update(repr(item.shape).encode() + item.tobytes())
        return digest.hexdigest()


class Splits(NamedTuple):
    """A dataset: ``validation`` is None where it has no split of that name."""

    train: Images
    test: Images
    validation: Images | None
    name: str


class ImageError(ValueError):
    """A file cannot be read as an image; says which, in one line.

    Raised by a process that loads data, it comes with the traceback of there, which a
    DataLoader hands to the keyword ``message`` of a class that has this attribute.
    """

    message = "cannot read image"

    def __init__(self, message: str) -> None:
        last = message.rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(" ".join(last.split()))


class ImageDataset(Dataset[Tensor]):
    """The images of a split as an encoder takes them.

    Args:
        items: as in `Images`.
        transform: of the encoder.
        corrupt: changes the pixels (H, W, 3) that the encoder would see, given the
            position of the image; None leaves them as they are.
    """

    def __init__(
        self,
        items: Sequence[Item],
        transform: Callable[[Item], Tensor],
        corrupt: Callable[[Pixels, int], Pixels] | None = None,
    ) -> None:
        self.items = items
        self.transform = transform
        self.corrupt = corrupt

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        item = self.items[index]
        try:
            image = self.transform(item)
        except CorruptImageError as error:
            raise ImageError(
                f"image {error}. Nothing is evaluated on a part of the images: mend "
                "the file, or remove it"
            ) from error
        if self.corrupt is None:
            return image
        pixels = self.corrupt(image.permute(1, 2, 0).numpy(), index)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def read_rgb(item: Item) -> Image.Image:
    """The image of a file or an array.

    Raises:
        CorruptImageError: the file cannot be read or decoded.
    """
    return load_image(item) if isinstance(item, Path) else Image.fromarray(item)


def read_folder(folder: Path, classes: Sequence[str] | None = None) -> Images:
    """Images of ``folder/<class>/**``, classes in the order of their names.

    Args:
        folder: with one folder for each class.
        classes: those of the training split, which give the class ids; None takes the
            folders found.

    Raises:
        ValueError: as `scan_classes`.
    """
    found = scan_classes(folder, classes)
    return Images(
        [Path(file) for file in found.files], torch.tensor(found.labels), found.classes
    )
