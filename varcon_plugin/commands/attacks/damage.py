"""Files that are damaged on the disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from varcon_plugin.checkpoints.reading import read_checkpoint
from varcon_plugin.commands.attacks.registry import Arena, Trial, attack
from varcon_plugin.evaluation.store import Features, export_features, load_features

__all__ = ["damaged_caches", "damaged_checkpoints", "harm"]

EACH_ROUND = 20


def harm(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """What was done to the content of a file, and what is left of it."""
    place = chance.randrange(len(content))
    damaged = bytearray(content)
    kind = chance.choice(("cut", "one bit", "zeros"))
    if kind == "cut":
        return f"cut after {place} bytes", content[:place]
    if kind == "one bit":
        damaged[place] ^= 1 << chance.randrange(8)
        return f"a bit of byte {place}", bytes(damaged)
    end = min(place + 4096, len(content))
    damaged[place:end] = bytes(end - place)
    return f"zeros from byte {place}", bytes(damaged)


def damaged(path: Path, read: Callable[[Path], Any], arena: Arena) -> Iterator[Trial]:
    """Read damaged versions of ``path``: its content, or one line that names it."""
    whole = path.read_bytes()
    expected = repr(read(path))
    for _ in range(EACH_ROUND * arena.rounds):
        what, content = harm(whole, arena.chance)
        path.write_bytes(content)
        try:
            held = repr(read(path)) == expected
            seen = "" if held else "it was read, with other content"
        except ValueError as error:
            seen = str(error)
            held = str(path) in seen and "\n" not in seen
        yield Trial(what, held, seen)


@attack("a damaged feature cache is refused in one line that names it")
def damaged_caches(arena: Arena) -> Iterator[Trial]:
    """Cut, a flipped bit, a block of zeros."""
    path = arena.folder / "features.safetensors"
    split = Features(torch.randn(64, 32), torch.arange(64) % 2, ("cat", "dog"))
    export_features(split, path, {"split": "train"})
    with torch._tensor_str.printoptions(profile="full", precision=9):
        yield from damaged(path, load_features, arena)


@attack("a damaged checkpoint is refused in one line that names it")
def damaged_checkpoints(arena: Arena) -> Iterator[Trial]:
    """The same of a checkpoint."""
    path = arena.folder / "epoch_1.pth"
    weights = {"conv.weight": torch.randn(64, 32), "conv.bias": torch.randn(64)}
    torch.save({"state_dict": weights, "meta": {"epoch": 1}}, path)
    with torch._tensor_str.printoptions(profile="full", precision=9):
        yield from damaged(path, read_checkpoint, arena)
