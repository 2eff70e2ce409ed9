"""A failure of a run is printed once on a machine, not by each of its processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_first", "told_once"]


@contextmanager
def told_once(passed: tuple[type[Exception], ...]) -> Iterator[None]:
    """Lets the first process that fails print its traceback, the others a line.

    Args:
        passed: what the caller tells itself.

    torchrun tells its processes where to leave what went wrong; the folder above is
    theirs together. Without torchrun there is one process, and nothing changes.
    """
    try:
        yield
    except passed:
        raise
    except Exception as error:
        if is_first():
            raise
        rank = os.environ.get("RANK", "?")
        said = " ".join(str(error).split())[:200]
        line = f"rank {rank} ends too: {type(error).__name__}: {said}"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        sys.exit(1)


def is_first() -> bool:
    """Whether no process of this machine has asked before."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return True
    try:
        (Path(file).parents[1] / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
