"""Parts of a folder of images, as links: smaller, long-tailed, with images held out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from varcon_plugin.evaluation.images import Images
from varcon_plugin.evaluation.linear import stratified_mask
from varcon_plugin.evaluation.sources import folder

__all__ = ["groups", "hold_out", "link_folder", "long_tail", "take", "thin_out"]

SEED = 0  # which images are taken is part of the data, not of a run


def long_tail(counts: Sequence[int], imbalance: float) -> list[int]:
    """How many images of each class to keep, falling exponentially with its position.

    The profile of Cui et al. (arXiv 1901.05555): the first class keeps ``min(counts)``
    images, the last one ``imbalance`` times fewer, at least one.
    """
    if imbalance < 1:
        raise ValueError(f"imbalance must be >= 1, got {imbalance}")
    most, last = min(counts), max(1, len(counts) - 1)
    return [max(1, round(most * imbalance ** (-c / last))) for c in range(len(counts))]


def thin_out(images: Images, per_class: int | None, imbalance: float) -> Tensor:
    """(N,) bool: the images to keep, drawn at random but the same in every run.

    Args:
        images: of all classes.
        per_class: of each class, before any imbalance; None is all.
        imbalance: as for `long_tail`; 1 keeps as many of each class as there are.
    """
    counts = images.labels.bincount(minlength=len(images.classes))
    wanted = counts.tolist()
    if per_class is not None:
        if not 1 <= per_class <= min(wanted):
            raise ValueError(
                f"images per class must be in [1, {min(wanted)}], the images of the "
                f"smallest class, got {per_class}"
            )
        wanted = [per_class] * len(wanted)
    if imbalance != 1:
        wanted = long_tail(wanted, imbalance)
    generator = torch.Generator().manual_seed(SEED)
    keep = torch.zeros(len(images.labels), dtype=torch.bool)
    for label, number in enumerate(wanted):
        members = (images.labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        keep[members[order[:number]]] = True
    return keep


def take(
    source: Path, out: Path, per_class: int | None = None, imbalance: float = 1.0
) -> Path:
    """``out`` with part of the training images of ``source`` and all test images.

    Arguments as for `thin_out`.
    """
    splits = folder(source)
    keep = thin_out(splits.train, per_class, imbalance)
    every = torch.ones(len(splits.test.labels), dtype=torch.bool)
    return link_folder(out, splits.train, keep, splits.test, every)


def hold_out(source: Path, out: Path, share: float = 0.2) -> Path:
    """``out``, whose test images are a ``share`` of the training images of ``source``.

    Of each class at least one is held out where it has two, none where it has one.
    """
    train = folder(source).train
    held = stratified_mask(train.labels, share, SEED)
    return link_folder(out, train, ~held, train, held)


def link_folder(
    out: Path, train: Images, in_train: Tensor, test: Images, in_test: Tensor
) -> Path:
    """Make ``out/train/<class>`` and ``out/test/<class>``, links to chosen images."""
    if out.exists():
        shutil.rmtree(out)
    for split, images, chosen in (("train", train, in_train), ("test", test, in_test)):
        for index in chosen.nonzero()[:, 0].tolist():
            item = images.items[index]
            assert isinstance(item, Path)
            place = out / split / images.classes[int(images.labels[index])]
            place.mkdir(parents=True, exist_ok=True)
            (place / item.name).symlink_to(item.resolve())
    return out


def groups(train_labels: Tensor) -> dict[str, Tensor]:
    """Which classes are frequent and which rare: a third of them each.

    By their number of training images; none where that differs by less than twice.
    """
    counts = train_labels.bincount()
    if counts.max() < 2 * counts.min():
        return {}
    order = counts.argsort(stable=True)
    third = max(1, len(counts) // 3)
    return {"frequent": order[-third:], "rare": order[:third]}
