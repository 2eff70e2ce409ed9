"""Folders of images, one for each class, found alike by every door and every tool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["SUFFIXES", "ClassFolders", "class_names", "scan_classes", "split_folder"]

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip
Split = Literal["train", "val", "test"]
SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "test"),
    "test": ("test", "val", "validation"),
}


class ClassFolders(NamedTuple):
    """The images of ``root/<class>/**``.

    Attributes:
        files: paths, by class and then by name.
        labels: class ids, positions in ``classes``.
        classes: names of the folders, sorted.
    """

    files: list[str]
    labels: list[int]
    classes: tuple[str, ...]


def scan_classes(
    root: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
) -> ClassFolders:
    """Find the images of ``root/<class>/**``; none of them is opened.

    Links are followed. A file with another ending is passed over; what has the ending
    of an image and cannot be one is an error, here and not in the middle of a run.
    Whether a file can be decoded shows when it is read.

    Args:
        root: with one folder for each class.
        classes: those of the training split, which give the class ids; ``root`` may
            lack some. None takes the folders found.
        suffixes: endings of image files, in lower case.

    Raises:
        ValueError: the folder is missing, holds no class folders or one that
            ``classes`` lacks; a class has no images or a name that is not UTF-8; a
            folder leads back to itself or cannot be listed; an image is a pipe, a
            device, a folder, or a link to nothing. Names what it is about.
    """
    root = os.fspath(root)
    found = class_names(root)
    names = tuple(found if classes is None else classes)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} classes that the training split lacks, such "
            f"as {', '.join(unknown[:5])}"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name not in found:
            continue
        folder = f"{root}/{name}"
        try:
            images = list(walk(folder, tuple(suffixes), ()))
        except OSError as error:
            raise ValueError(
                f"cannot read the folder {shown(error.filename or folder)}: "
                f"{error.strerror}"
            ) from error
        if not images:
            raise ValueError(
                f"no images in class folder {folder} (files that end in "
                f"{', '.join(suffixes)}): remove the folder, or fill it"
            )
        files += images
        labels += [label] * len(images)
    return ClassFolders(files, labels, names)


def class_names(root: str | os.PathLike[str]) -> list[str]:
    """Names of the class folders of ``root``, sorted; hidden ones are none.

    Raises:
        ValueError: there are none, or a name is not UTF-8.
    """
    root = os.fspath(root)
    if not Path(root).is_dir():
        raise ValueError(f"image folder not found: {root}")
    names = [entry.name for entry in visible(root) if entry.is_dir()]
    if not names:
        raise ValueError(f"no class folders in {root}: expected {root}/<class>/<image>")
    for name in names:
        if shown(name) != name:
            raise ValueError(
                f"the class folder {shown(name)} in {root} has a name that is not "
                "UTF-8: rename it"
            )
    return names


def walk(
    folder: str, suffixes: tuple[str, ...], above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    """Images below ``folder``, which lies in the folders ``above`` (device, inode)."""
    status = Path(folder).stat()
    here = status.st_dev, status.st_ino
    if here in above:
        raise ValueError(
            f"the folder {shown(folder)} leads back to a folder that it lies in: "
            "remove the link"
        )
    for entry in visible(folder):
        image = entry.name.lower().endswith(suffixes)
        if entry.is_dir():
            yield from walk(entry.path, suffixes, (*above, here))
        elif image and not entry.is_file():
            link = "a link to nothing" if entry.is_symlink() else "not a regular file"
            raise ValueError(f"{shown(entry.path)} is {link}: remove it")
        elif image:
            yield entry.path


def visible(folder: str) -> list[os.DirEntry[str]]:
    """What is in ``folder``, by name, without what is hidden."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


def shown(path: str) -> str:
    """A path that can be printed whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="backslashreplace")


def split_folder(root: str | os.PathLike[str], split: Split) -> Path:
    """Where a split of a dataset lies, whichever of the usual names it has.

    Args:
        root: of the dataset.
        split: ``"train"`` is ``root/train``; ``"test"`` the first of ``test``, ``val``
            and ``validation`` that is there, ``"val"`` that of ``val``, ``validation``
            and ``test``.

    Raises:
        ValueError: there is no such folder.
    """
    names = SPLITS[split]
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    folders = " or ".join(f"{root}/{name}" for name in names)
    raise ValueError(
        f"image folder not found: {folders}, with one folder for each class"
    )
