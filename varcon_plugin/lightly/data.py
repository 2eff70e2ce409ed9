"""Datasets as lightly trains on them: two augmented views to train, one to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightly.data import LightlyDataset
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.datasets import CIFAR10, CIFAR100

from varcon_plugin.training.damaged import ReplaceCorrupt
from varcon_plugin.training.digits import load_digits_split
from varcon_plugin.training.folders import split_folder
from varcon_plugin.training.image_folder import ImageFolder

__all__ = [
    "Datasets",
    "Digits",
    "create_datasets",
    "digits_transform",
    "resize_and_crop",
]

Split = Literal["train", "test"]


class Datasets(NamedTuple):
    """What a run trains and is evaluated on.

    Attributes:
        train: yields (views, target), of a folder (views, target, filename).
        bank: the images of ``train``, unaugmented: (image, target, ...).
        val: the images to test on, likewise.
        bank_targets: of ``bank``, in its order.
        val_targets: of ``val``, in its order.
        num_classes: targets are in [0, num_classes).
        image_size: side of an image in pixels.
    """

    train: Dataset[Any]
    bank: Dataset[Any]
    val: Dataset[Any]
    bank_targets: list[int]
    val_targets: list[int]
    num_classes: int
    image_size: int


class Digits(Dataset[tuple[Any, int]]):
    """scikit-learn's bundled handwritten digits, as torchvision would have them.

    Args:
        split: ``"train"`` (1,347 images) or ``"test"`` (450).
        transform: of an 8 x 8 RGB PIL image; None leaves it.
    """

    def __init__(
        self, split: Split, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        images, labels = load_digits_split(split)
        self.images = [Image.fromarray(image).convert("RGB") for image in images]
        self.targets: list[int] = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.images[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]


def create_datasets(
    data: str, *, download_dir: Path = Path("data"), image_size: int = 224
) -> Datasets:
    """The datasets named ``data``.

    Args:
        data: ``"digits"`` (scikit-learn's, 32 pixels), ``"cifar10"`` or ``"cifar100"``
            (downloaded by torchvision, 32 pixels), or a folder that holds
            ``train/CLASS/*`` and ``val/CLASS/*`` (or ``test``), where damaged images
            are replaced.
        download_dir: where torchvision looks for CIFAR, or puts it.
        image_size: of the images of a folder.

    Raises:
        ValueError: ``data`` is neither a known name nor such a folder, or the classes
            of the two splits differ.
    """
    if data == "digits":
        return _digits()
    if data in ("cifar10", "cifar100"):
        return _cifar(CIFAR10 if data == "cifar10" else CIFAR100, download_dir)
    return _folder(Path(data), image_size)


def digits_transform(image_size: int = 32) -> SimCLRTransform:
    """Two views of a digit: crops, brightness and contrast; no flip, colour or blur."""
    return SimCLRTransform(
        input_size=image_size,
        cj_bright=0.4,
        cj_contrast=0.4,
        cj_sat=0.0,
        cj_hue=0.0,
        min_scale=0.5,
        random_gray_scale=0.0,
        gaussian_blur=0.0,
        hf_prob=0.0,
    )


def _digits(image_size: int = 32) -> Datasets:
    plain = _plain_transform(image_size)
    bank, val = Digits("train", plain), Digits("test", plain)
    train = Digits("train", digits_transform(image_size))
    return Datasets(train, bank, val, bank.targets, val.targets, 10, image_size)


def _cifar(cls: type[CIFAR10], root: Path, image_size: int = 32) -> Datasets:
    # The augmentation of SupCon and VarCon on CIFAR: jitter .4, .4, .4, .1, no blur.
    views = SimCLRTransform(
        input_size=image_size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0
    )
    plain = _plain_transform(image_size)
    train = cls(str(root), train=True, transform=views, download=True)
    bank = cls(str(root), train=True, transform=plain)
    val = cls(str(root), train=False, transform=plain)
    classes = len(train.classes)
    return Datasets(train, bank, val, bank.targets, val.targets, classes, image_size)


def _folder(root: Path, image_size: int) -> Datasets:
    try:
        train_root = str(split_folder(root, "train"))
        val_root = str(split_folder(root, "val"))
    except ValueError as error:
        raise ValueError(
            'data must be "digits", "cifar10", "cifar100" or a folder with the '
            f"subfolders train and val (or test), got {str(root)!r}: {error}"
        ) from error
    views = SimCLRTransform(input_size=image_size)
    plain = _plain_transform(image_size)
    train = ImageFolder(train_root, transform=views)
    bank = ImageFolder(train_root, transform=plain)
    val = ImageFolder(val_root, transform=plain, classes=train.classes)
    with_filenames = LightlyDataset.from_torch_dataset
    return Datasets(
        ReplaceCorrupt(with_filenames(train)),
        ReplaceCorrupt(with_filenames(bank)),
        ReplaceCorrupt(with_filenames(val)),
        bank.targets,
        val.targets,
        len(train.classes),
        image_size,
    )


def resize_and_crop(image_size: int) -> list[Any]:
    """The square that is evaluated: of an image 8/7 as large, unless that is tiny."""
    resized = image_size if image_size <= 64 else round(image_size * 8 / 7)
    return [T.Resize(resized), T.CenterCrop(image_size)]


def _plain_transform(image_size: int) -> T.Compose:
    """As lightly's benchmark evaluates: 256 to 224 pixels."""
    steps = [*resize_and_crop(image_size), T.ToTensor()]
    return T.Compose([*steps, T.Normalize(**IMAGENET_NORMALIZE)])
