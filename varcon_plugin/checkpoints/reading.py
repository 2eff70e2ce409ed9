"""Weights from checkpoints of strangers, without running their code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["listed", "load_state_dict", "mismatch"]


class _Ignored:
    """Stands in for whatever a checkpoint holds beside its weights."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What mmengine writes for its log buffers. The names are allowed, but mean nothing.
IGNORED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The model weights in a checkpoint, on the CPU.

    Reads what mmengine, Lightning and plain `torch.save` write: the weights lie under
    ``state_dict`` or ``model``, or are the file itself. A leading ``module.`` (DDP) is
    taken off their names. Only tensors and plain containers are unpickled; log buffers
    and argument namespaces beside the weights are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, holds objects of other classes, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        with stand_ins():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be loaded safely: {reason(path)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {
        name.removeprefix("module."): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not weights:
        raise ValueError(f"{path} holds no weights: no tensors in it have a name")
    return weights


@contextmanager
def stand_ins() -> Iterator[None]:
    """Have torch unpickle `IGNORED` as nothing, also where others allowed the real."""
    before = torch.serialization.get_safe_globals()
    others = [known for known in before if name_of(known) not in IGNORED]
    ours = [(_Ignored, name) for name in IGNORED]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *ours])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def name_of(known: Any) -> str:
    """By which a checkpoint names an entry of torch's list."""
    if isinstance(known, tuple):
        return str(known[1])
    return f"{known.__module__}.{known.__qualname__}"


def reason(path: Path) -> str:
    """Why ``path`` was refused, without torch's advice to load it unsafely."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError):
        return "it is not a checkpoint of torch.save"
    strange = sorted(set(names) - set(IGNORED))
    return f"it holds objects of {', '.join(strange)}" if strange else "it is damaged"


def mismatch(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    unexpected: Sequence[str],
    most: int = 10,
) -> str:
    """What keeps ``found`` from filling a model with the weights ``wanted``, in words.

    Empty if nothing does. ``unexpected`` are the names in ``found`` that the caller
    holds against it; ``most`` names of a kind are listed.
    """
    problems = {
        "missing": [name for name in wanted if name not in found],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
        "unexpected": unexpected,
    }
    told = [
        f"{kind}: {listed(names, most)}" for kind, names in problems.items() if names
    ]
    return "; ".join(told)


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first of ``names`` and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
