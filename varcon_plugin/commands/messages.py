"""How a command ends that cannot do what it was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["fail"]


def fail(error: object) -> NoReturn:
    """End the program with ``error`` in one line, after the name it was called by."""
    sys.exit(f"{Path(sys.argv[0]).name}: {error}")
