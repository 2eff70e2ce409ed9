"""Where a clone or an installed package keeps what is no Python module."""

from __future__ import annotations

from pathlib import Path

__all__ = ["project_root"]

PACKAGE = Path(__file__).resolve().parents[1]


def project_root() -> Path:
    """The folder with ``configs`` and ``tools``: of the clone, or in the package."""
    clone, installed = PACKAGE.parent, PACKAGE / ".mim"
    return installed if installed.is_dir() else clone
