"""Checkpoints of strangers, without running their code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from varcon_plugin.checkpoints.plain import STAND_INS, RefusedError, resolve
from varcon_plugin.checkpoints.writing import damage

__all__ = [
    "CheckpointError",
    "listed",
    "load_state_dict",
    "mismatch",
    "named_weights",
    "read_checkpoint",
]

File: TypeAlias = str | Path | BinaryIO


class CheckpointError(ValueError):
    """A file is no checkpoint, or holds more than data; says which file, and what."""


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The model weights in a checkpoint, on the CPU: `named_weights` of its content.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: as `read_checkpoint`, or it holds no weights.
    """
    return named_weights(read_checkpoint(path, "cpu"), path)


def read_checkpoint(file: File, map_location: Any = None) -> Any:
    """What mmengine, Lightning or plain `torch.save` wrote, as far as it is data.

    Tensors, numbers, strings and plain containers are unpickled, numpy's arrays of
    numbers rebuilt from their bytes. A log buffer of mmengine becomes a
    `varcon_plugin.checkpoints.plain.LogBuffer`; argument namespaces mean nothing.

    Args:
        file: its path, or the file opened for reading.
        map_location: as `torch.load` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, damaged, or holds objects of other
            classes, none of which has been called.
    """
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise FileNotFoundError(f"checkpoint not found: {file}")
    try:
        with stand_ins():
            content = torch.load(file, map_location=map_location, weights_only=True)
        content = resolve(content)
    except Exception as error:  # damaged pickles raise whatever there is
        name = file if isinstance(file, str | Path) else "the checkpoint"
        why = reason(file, error)
        raise CheckpointError(f"{name} cannot be loaded safely: {why}") from error
    if zipfile.is_zipfile(file):  # what torch loads in spite of flipped bits
        wrong = damage(file)
        if wrong:
            raise CheckpointError(f"{file} is damaged: {wrong}")
    return content


def named_weights(content: Any, source: object) -> dict[str, Tensor]:
    """The weights in the content of a checkpoint, by their names in the model.

    They lie under ``state_dict`` or ``model``, or are all there is. A leading
    ``module.`` (DDP) is taken off their names.

    Args:
        content: as `read_checkpoint` returns it.
        source: where it comes from, for the message.

    Raises:
        CheckpointError: there are no weights.
    """
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
        raise CheckpointError(
            f"{source} holds no weights: no tensors in it have a name"
        )
    return weights


@contextmanager
def stand_ins() -> Iterator[None]:
    """Have torch unpickle `STAND_INS`, also where others allowed the real things."""
    before = torch.serialization.get_safe_globals()
    others = [known for known in before if name_of(known) not in STAND_INS]
    ours = [(function, name) for name, function in STAND_INS.items()]
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


def reason(file: File, error: Exception) -> str:
    """Why ``file`` was refused, without torch's advice to load it unsafely."""
    if isinstance(error, RefusedError):
        return f"it holds {error}"
    if isinstance(error, OSError):
        return str(error)
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # torch's older format, or none of its formats
        names = set(re.findall(r"GLOBAL (\S+)", str(error)))
        if not names:
            return "it is not a checkpoint of torch.save"
    strange = sorted(names - set(STAND_INS))
    return f"it holds objects of {listed(strange)}" if strange else "it is damaged"


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
