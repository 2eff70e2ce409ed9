"""Let the original mmengine resume under torch >= 2.6.

Its checkpoints hold log buffers, which `torch.load` refuses. The maintained fork brings
the list of their classes; for the original, `allow_log_buffers` gives it to torch.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import checkpoint

__all__ = ["allow_log_buffers", "log_buffer_globals"]

Global = Callable[..., Any] | tuple[Callable[..., Any], str]
STATISTICS = ("min", "max", "mean", "current")


def allow_log_buffers() -> None:
    """Put `log_buffer_globals` on torch's list, unless mmengine sees to that itself."""
    if not hasattr(checkpoint, "get_torch_safe_globals"):
        torch.serialization.add_safe_globals(log_buffer_globals())


def log_buffer_globals() -> list[Global]:
    """What a log buffer is unpickled with; none of it runs code of the file's choice.

    ``getattr``, by which a buffer finds its statistics, does so for these alone.
    """
    dtypes = (np.float32, np.float64, np.int32, np.int64)
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64().__reduce__()[0]
    return [
        HistoryBuffer,
        (statistic, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(dtype)) for dtype in dtypes),
        reconstruct,
        scalar,
    ]


def statistic(owner: Any, name: str) -> Any:
    """A statistic of log buffers by its name.

    Raises:
        UnpicklingError: it is anything else's, or another attribute.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f"refused: {name} of {owner!r} in a checkpoint")
    return getattr(owner, name)
