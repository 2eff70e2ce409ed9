"""Broken images, through every door."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS

import varcon_plugin.mmpretrain  # noqa: F401  registers everything
from varcon_plugin.commands.attacks.broken import (
    GREY,
    SPOILT,
    damaged_files,
    encoded,
    noise,
    whole_folder,
)
from varcon_plugin.commands.attacks.damage import EACH_ROUND, harm
from varcon_plugin.commands.attacks.registry import Arena, Trial, attack
from varcon_plugin.evaluation.images import ImageDataset
from varcon_plugin.evaluation.sources import ImageTransform, folder
from varcon_plugin.training.crops import TwoCrops
from varcon_plugin.training.damaged import CorruptImageError, ReplaceCorrupt
from varcon_plugin.training.decoding import load_image
from varcon_plugin.training.image_folder import ImageFolder

__all__ = ["DOORS", "broken_images"]

STEPS: dict[str, list[dict[str, Any]]] = {
    "TwoCrops": [{"type": "TwoCrops", "scale": 16}, {"type": "PackInputs"}],
    "LoadImage": [
        {"type": "LoadImage"},
        {"type": "Resize", "scale": 16},
        {"type": "PackInputs"},
    ],
}


def torch_door(root: Path) -> list[float]:
    """Grey of every training image, as a loop in plain torch gets it."""
    data = ImageFolder(str(root / "train"), loader=str, transform=TwoCrops(16))
    whole = ReplaceCorrupt(data)
    return [float(torch.stack(whole[i][0]).float().mean()) for i in range(len(whole))]


def lightly_door(root: Path) -> list[float]:
    """The same as lightly's trainer gets it."""
    from varcon_plugin.lightly.data import create_datasets

    data = create_datasets(str(root), image_size=16)
    for index in range(len(data.train)):  # type: ignore[arg-type]
        data.train[index]
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    shown = range(len(data.bank))  # type: ignore[arg-type]
    images = [data.bank[index][0] for index in shown]
    return [float(255 * (image.mean((1, 2)) * std + mean).mean()) for image in images]


def mmpretrain_door(root: Path, steps: str) -> list[float]:
    """The same as mmpretrain gets it."""
    init_default_scope("mmpretrain")
    config = {"type": "ImageFolder", "data_root": str(root), "pipeline": STEPS[steps]}
    data = DATASETS.build({**config, "serialize_data": False})  # quicker
    return [float(data[index]["inputs"].float().mean()) for index in range(len(data))]


def evaluation(root: Path) -> list[float]:
    """The same as tools/evaluate.py gets it."""
    images = folder(root).train
    read = ImageTransform(lambda image: torch.tensor(np.array(image)))
    data = ImageDataset(images.items, read)
    return [float(data[index].float().mean()) for index in range(len(data))]


DOORS: dict[str, Callable[[Path], Sequence[float]]] = {
    "torch": torch_door,
    "lightly": lightly_door,
    "mmpretrain, TwoCrops": lambda root: mmpretrain_door(root, "TwoCrops"),
    "mmpretrain, LoadImage": lambda root: mmpretrain_door(root, "LoadImage"),
    "evaluation": evaluation,
}


@attack("a broken image is replaced and named or refused, never trained on")
def broken_images(arena: Arena) -> Iterator[Trial]:
    """Each kind at each door; then files cut and damaged anywhere."""
    for number, (door, read) in enumerate(DOORS.items()):
        for kind, content in damaged_files().items():
            root = whole_folder(arena.folder / f"{number} {kind}")
            path = root / "train" / "cat" / "damaged.jpg"
            path.write_bytes(content)
            yield Trial(f"{kind} at {door}", *replaced(read, root, path))
        for spoil in SPOILT:
            root = whole_folder(arena.folder / f"{number} {spoil.__name__}")
            message = spoil(root / "train" / "cat")
            yield Trial(f"{spoil.__name__} at {door}", *refused(read, root, message))
    path = arena.folder / "image"
    for kind in ("PNG", "JPEG"):
        whole = encoded(noise(), kind)
        path.write_bytes(whole)
        expected = np.asarray(load_image(path))
        for _ in range(EACH_ROUND * arena.rounds):
            if kind == "PNG":
                what, content = harm(whole, arena.chance)
            else:  # it has no checksum that would tell a flipped bit
                place = arena.chance.randrange(len(whole))
                what, content = f"ends after {place} bytes", whole[:place] + b"\xff\xd9"
            path.write_bytes(content)
            try:
                held = np.array_equal(np.asarray(load_image(path)), expected)
                seen = "" if held else "it was read, with other pixels"
            except CorruptImageError as error:
                held, seen = True, str(error)
            yield Trial(f"{kind}, {what}", held, seen)


def replaced(
    read: Callable[[Path], Sequence[float]], root: Path, path: Path
) -> tuple[bool, str]:
    """Whether a door delivers the other images alone, and names the one at ``path``."""
    said: list[str] = []
    try:
        with captured(said):
            grey = read(root)
    except ValueError as error:
        return f"image {path} cannot be used" in str(error), str(error)
    good = len(grey) == 5 and all(abs(value - GREY) < 1 for value in grey)
    return good and f"{path} cannot be used" in said[0], f"{grey}\n{said[0]}"


def refused(
    read: Callable[[Path], Sequence[float]], root: Path, message: str
) -> tuple[bool, str]:
    """Whether a door says ``message`` of a folder."""
    try:
        with captured([]):
            grey = read(root)
    except ValueError as error:
        return bool(re.search(message, str(error))), str(error)
    return False, f"it was read: {grey}"


@contextmanager
def captured(said: list[str]) -> Iterator[None]:
    """Add what is printed meanwhile, whoever has kept which stream, to ``said``."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
