"""Which checkpoint of a folder a run goes on from: the newest that is whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from varcon_plugin.checkpoints.reading import reason, stand_ins
from varcon_plugin.checkpoints.writing import damage

__all__ = ["Newest", "newest", "progress"]


class Newest(NamedTuple):
    """A checkpoint to go on from, and why this one.

    Attributes:
        path: of the file; None if there is none.
        steps: of training that it has behind it.
        damaged: what is wrong with the files passed over, by name.
    """

    path: Path | None
    steps: int
    damaged: dict[str, str]

    def __str__(self) -> str:
        passed = "".join(f"; {name}: {why}" for name, why in self.damaged.items())
        if self.path is None:
            return "no whole checkpoint" + passed
        return f"{self.path} (step {self.steps}), the newest whole checkpoint{passed}"


def newest(files: Iterable[Path]) -> Newest:
    """The one of ``files`` with most steps of training behind it that is whole.

    Neither names nor dates are trusted, nor a file that points to another: folders are
    moved and copied, and files are cut short. Links, and files without the state of an
    optimiser, from which no run can go on, are left out.
    """
    damaged: dict[str, str] = {}
    found: list[tuple[tuple[int, int], Path]] = []
    for path in sorted(files):
        if path.is_symlink():
            continue
        try:
            steps = progress(path)
        except ValueError as error:
            damaged[path.name] = damage(path) or str(error)
            continue
        if steps is not None:
            found.append((steps, path))
    for steps, path in sorted(found, reverse=True):
        wrong = damage(path)
        if not wrong:
            return Newest(path, steps[0], damaged)
        damaged[path.name] = wrong
    return Newest(None, 0, damaged)


def progress(path: Path) -> tuple[int, int] | None:
    """Steps and whole epochs of the run that wrote ``path``; None if it cannot go on.

    Reads what mmengine and Lightning write, without the tensors.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with stand_ins():
            content = torch.load(path, "cpu", weights_only=True, mmap=True)
    except Exception as no:  # damaged pickles raise whatever there is
        raise ValueError(reason(path, no)) from no
    if not isinstance(content, dict):
        return None
    if "optimizer" in content and isinstance(content.get("meta"), dict):  # mmengine
        counts = content["meta"].get("iter"), content["meta"].get("epoch")
    elif "optimizer_states" in content:  # Lightning
        counts = content.get("global_step"), content.get("epoch")
    else:
        return None
    steps, epochs = counts
    if not isinstance(steps, int) or not isinstance(epochs, int):
        return None
    return steps, epochs
