"""Silence for what host packages print when they start, where we start them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

__all__ = ["quiet_start"]

# mmpretrain's maintained fork prints it where a service of its makers is not installed
IDLE = ("Could not import OneDL",)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Import mmpretrain within: what says nothing about a run is not shown."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(said):
            # of a compiled operation that nothing here uses
            warnings.filterwarnings("ignore", "Fail to import ``MultiScaleDeformable")
            yield
    finally:
        for line in said.getvalue().splitlines():
            if line not in IDLE:
                print(line)
