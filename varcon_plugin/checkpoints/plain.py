"""What checkpoints hold beside tensors and containers, unpickled as plain data.

A pickle names the callables that rebuild it. Those that mmengine's log buffers and
argument namespaces need are replaced by stand-ins, which take the data and call nothing
of the file's choice; `resolve` puts arrays and `LogBuffer` in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["STAND_INS", "LogBuffer", "RefusedError", "resolve"]

Numbers: TypeAlias = npt.NDArray[Any]


class RefusedError(Exception):
    """Part of a checkpoint is not what its name says."""


class LogBuffer(NamedTuple):
    """What mmengine's HistoryBuffer holds.

    Attributes:
        values: (N,) logged numbers.
        counts: (N,) what each of them weighs.
        max_length: how many are kept at most.
    """

    values: Numbers
    counts: Numbers
    max_length: int


class Ignored:
    """Stands in for whatever means nothing to us."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _DType:
    """numpy.dtype of plain numbers; of anything else, ``numpy`` is None."""

    def __init__(self, code: object = "", *_: object) -> None:
        known = re.fullmatch("b1|[iu][1248]|f[248]", str(code))
        self.numpy = np.dtype(known.group()) if known else None

    def __setstate__(self, state: Any) -> None:
        if self.numpy is not None and state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """numpy.ndarray; of anything but numbers, ``value`` is None."""

    value: Numbers | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = numbers(dtype, data)
        if self.value is not None:
            self.value = self.value.reshape(shape, order="F" if fortran else "C")


class _HistoryBuffer:
    """mmengine's HistoryBuffer."""

    state: dict[str, Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or self.state is not None:
            raise RefusedError("a log buffer that is none")
        self.state = state

    def value(self) -> LogBuffer:
        """The buffer, its ways to compute statistics left out."""
        state = self.state or {}
        values, counts = (
            item.value if isinstance(item, _Array) else None
            for item in (state.get("_log_history"), state.get("_count_history"))
        )
        length = state.get("max_length")
        if (
            values is None
            or counts is None
            or values.ndim != 1
            or values.shape != counts.shape
            or not isinstance(length, int)
        ):
            raise RefusedError("a log buffer that is none")
        return LogBuffer(values, counts, length)


def numbers(dtype: object, data: object) -> Numbers | None:
    """(N,) of the bytes ``data``, None if they are of no number type."""
    if not isinstance(dtype, _DType) or dtype.numpy is None:
        return None
    if not isinstance(data, bytes):
        return None
    return np.frombuffer(data, dtype.numpy).copy()


def array(*_: object) -> _Array:
    """For numpy's ``_reconstruct``."""
    return _Array()


def scalar(dtype: object = None, data: object = None) -> Any:
    """For numpy's ``scalar``."""
    found = numbers(dtype, data)
    return Ignored() if found is None or len(found) != 1 else found[0]


STAND_INS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": Ignored,
    "builtins.getattr": Ignored,
    "mmengine.logging.history_buffer.HistoryBuffer": _HistoryBuffer,
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
} | {
    f"numpy.{core}.multiarray.{name}": function
    for core in ("core", "_core")
    for name, function in (("_reconstruct", array), ("scalar", scalar))
}


def resolve(content: Any) -> Any:
    """``content`` with arrays and log buffers in place of their stand-ins.

    Dicts and lists are changed in place. A part that occurs often is visited once.
    """
    return _resolve(content, {})


def _resolve(content: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    if not isinstance(content, _Array | _HistoryBuffer | tuple | dict | list):
        return content
    if id(content) in done:
        return done[id(content)][1]
    done[id(content)] = content, content  # kept, so that its id stays its own
    result: Any = content
    if isinstance(content, _Array):
        result = content.value
    elif isinstance(content, _HistoryBuffer):
        result = content.value()
    elif type(content) is tuple:
        result = tuple(_resolve(item, done) for item in content)
    elif isinstance(content, dict | list):
        places = content.items() if isinstance(content, dict) else enumerate(content)
        for place, item in list(places):
            content[place] = _resolve(item, done)
    done[id(content)] = content, result
    return result
