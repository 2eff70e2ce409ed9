"""Checkpoints that try to run code: whole ones, but for a part of them.

What they would do is create a file; tests and `make chaos` look for it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, ClassVar

import torch
from mmengine.logging import HistoryBuffer

__all__ = ["PAYLOADS", "REFUSED", "write_hostile"]


class _Call:
    """Unpickles as what a function returns."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


class _Twice:
    """Unpickles as an object that is given a state twice.

    The first makes Python's ``exec`` the method that takes a state, the second is code.
    No name is needed for that but those of ``getattr`` and of a harmless class.
    """

    def __init__(self, owner: type, code: str) -> None:
        self.owner, self.code = owner, code


_PythonPickler: Any = pickle._Pickler  # the one that is written in Python


class _Pickler(_PythonPickler):  # type: ignore[misc]
    """Writes a second state too."""

    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def save_twice(self, item: _Twice) -> None:
        execute = _Call(getattr, _Call(getattr, getattr, "__self__"), "exec")
        self.save(item.owner)
        self.write(pickle.EMPTY_TUPLE + pickle.REDUCE)
        for state in ({"__setstate__": execute}, item.code):
            self.save(state)
            self.write(pickle.BUILD)

    dispatch[_Twice] = save_twice


def _dump(item: object, file: BinaryIO, protocol: int) -> None:
    """For the older format of ``torch.save``."""
    _Pickler(file, protocol).dump(item)


def _system(content: Mapping[str, Any], marker: Path) -> dict[str, Any]:
    return {**content, "x": _Call(os.system, f"touch {shlex.quote(str(marker))}")}


def _twice(owner: type) -> Callable[[Mapping[str, Any], Path], dict[str, Any]]:
    def hostile(content: Mapping[str, Any], marker: Path) -> dict[str, Any]:
        return {**content, "x": _Twice(owner, code(marker))}

    return hostile


def _config(content: Mapping[str, Any], marker: Path) -> dict[str, Any]:
    return {**content, "meta": {**content.get("meta", {}), "config": code(marker)}}


def code(marker: Path) -> str:
    """Python that creates ``marker``, as an expression and as a config."""
    return f"a = open({str(marker)!r}, 'w').close()"


PAYLOADS = {
    "a call of os.system": _system,
    "a log buffer built twice": _twice(HistoryBuffer),
    "an argument namespace built twice": _twice(argparse.Namespace),
    "a config as text": _config,
}
REFUSED = "a call of os.system", "a log buffer built twice"  # the others mean nothing


def write_hostile(
    payload: str, content: Mapping[str, Any], path: Path, marker: Path, **options: Any
) -> None:
    """Write a checkpoint that, wherever it is executed, creates ``marker``.

    Args:
        payload: of `PAYLOADS`.
        content: of the checkpoint, as mmengine or Lightning saves it.
        path: of the file to write.
        marker: of the file whose existence proves that code has run.
        options: of ``torch.save``.
    """
    writer = ModuleType("writer")
    vars(writer).update(vars(pickle), Pickler=_Pickler, dump=_dump)
    hostile = PAYLOADS[payload](content, marker)
    torch.save(hostile, path, pickle_module=writer, **options)
