"""torchvision's `ImageFolder`, with this package's rules for files and folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision import datasets

from varcon_plugin.training.decoding import load_image
from varcon_plugin.training.folders import scan_classes

__all__ = ["ImageFolder"]


class ImageFolder(datasets.ImageFolder):  # type: ignore[misc]
    """``root/<class>/**`` as torchvision has it, strict (docs/data.md).

    Files are found by `scan_classes` and read by `load_image`: a damaged one raises
    `CorruptImageError`, for which `ReplaceCorrupt` puts another.

    Args:
        root: with one folder for each class.
        transform: of a Pillow image; of the path with ``loader=str``, as `TwoCrops`
            takes it.
        loader: of the path.
        classes: those of the training split, which give the class ids; ``root`` may
            lack some. None takes the folders found.

    Raises:
        ValueError: as `scan_classes`.
    """

    def __init__(
        self,
        root: str,
        transform: Callable[[Any], Any] | None = None,
        loader: Callable[[str], Any] = load_image,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._given = classes
        super().__init__(root, transform=transform, loader=loader)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Names and ids of the classes."""
        self._scanned = scan_classes(directory, self._given)
        names = list(self._scanned.classes)
        return names, {name: label for label, name in enumerate(names)}

    def make_dataset(self, *_: Any, **__: Any) -> list[tuple[str, int]]:
        """Paths and class ids."""
        return list(zip(self._scanned.files, self._scanned.labels, strict=True))
