"""What protocols need, checked before anything is computed."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from varcon_plugin.evaluation.images import Splits
from varcon_plugin.evaluation.settings import Settings

__all__ = ["check_folder", "fitted", "unmet"]


def fitted(
    settings: Settings, data: Splits, given: Collection[str]
) -> tuple[Settings, list[str]]:
    """Settings without the neighbours and shots that the data cannot give.

    Args:
        settings: their ``ks`` and ``shots`` may be too large.
        data: what is evaluated on.
        given: names of the settings that the user chose, which are not changed.

    Returns:
        The settings and a note for each change.

    Raises:
        ValueError: a chosen value is too large; names its flag.
    """
    notes = []
    most = {"ks": len(data.train.items), "shots": fewest_images(data)}
    flags = {"ks": "--k", "shots": "--shots"}
    reasons = {"ks": "training images", "shots": "training images of the rarest class"}
    for name, limit in most.items():
        values = getattr(settings, name)
        large = [value for value in values if value > limit]
        if not large:
            continue
        about = f"{flags[name]} {large[0]} is more than the {limit} {reasons[name]}"
        if name in given:
            raise ValueError(about)
        kept = tuple(value for value in values if value <= limit) or (limit,)
        if name == "ks":
            settings = replace(settings, ks=kept)
        else:
            settings = replace(settings, shots=kept)
        notes.append(f"{about}: {flags[name]} {' '.join(map(str, kept))} instead")
    return settings, notes


def fewest_images(data: Splits) -> int:
    """Training images of the rarest class; of several labels an image, all images."""
    labels = data.train.labels
    if labels.ndim != 1:
        return len(labels)
    counts = torch.bincount(labels)
    return int(counts[counts > 0].min())


def unmet(protocol: str, settings: Settings) -> str | None:
    """Why a protocol cannot be run, with the flag that helps; None if it can."""
    if protocol == "transfer" and not settings.transfers:
        return "it needs datasets to transfer to: give --transfer DATA"
    if protocol == "few-shot" and settings.draws < 2:
        return f"--draws {settings.draws} gives no interval: at least 2"
    released = settings.imagenet_c if protocol == "corruption" else None
    if released is not None and not released.is_dir():
        return f"--imagenet-c: there is no folder {released}"
    return None


def check_folder(folder: Path) -> None:
    """Make ``folder`` and try to write to it.

    Raises:
        ValueError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--out: cannot write to {folder}: {error.strerror}"
        ) from error
