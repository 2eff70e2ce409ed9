"""Warnings that point at the line of the user's that led to them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

__all__ = ["warn_caller"]

OURS = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn_caller(message: str) -> None:
    """Warn at the nearest line that is neither in this package nor in torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
