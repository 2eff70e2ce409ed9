"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch

__all__ = ["STORAGE_ERRORS", "damage", "save", "write_atomically"]

# What a full, read-only or unreachable place answers; nobody's program is wrong.
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.EEXIST,  # a file where a folder should be
    errno.EISDIR,
)


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Put what ``write`` writes at ``path``, in one step.

    It goes to a temporary file in the same folder, which is synced to the disk and then
    renamed: whenever the process or the machine dies, ``path`` holds the old content or
    the new, never a part. If ``write`` fails nothing is left behind.

    Args:
        path: its folder is created if missing.
        write: called with the temporary file, open for writing.

    Raises:
        OSError: the disk is full, the folder cannot be written, ...; ``path`` is as it
            was. The message names it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        told = storage_error(error)
        if told is None:
            raise
        reason = os.strerror(told.errno or 0)
        raise OSError(told.errno, f"cannot write {path}: {reason}") from error


def storage_error(error: BaseException | None) -> OSError | None:
    """The `OSError` that ``error`` is or was raised for.

    `torch.save` raises a RuntimeError while it handles that of the file.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def sync_folder(folder: Path) -> None:
    """Have the disk remember the names in ``folder``, where it can be asked to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(content: Any, path: str | Path) -> None:
    """`torch.save`, atomically.

    The file is a zip archive with a CRC-32 of every tensor, which `damage` checks.

    Raises:
        OSError: as `write_atomically`.
    """
    write_atomically(path, lambda file: torch.save(content, file))


def damage(file: str | Path | BinaryIO) -> str:
    """What is wrong with the ``file`` that `torch.save` wrote; empty if whole.

    Reads all of it and compares the checksums inside, so that a file cut short and
    flipped bits are found, wherever they make a difference. Files of torch before 1.6,
    which are no zip archives and have no checksums, count as damaged.
    """
    try:
        if isinstance(file, str | Path) and Path(file).stat().st_size == 0:
            return "it is empty"
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        return f"it is cut short or damaged ({error})"
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as no:
        return f"it is damaged ({no})"
    except OSError as error:
        return f"it cannot be read ({os.strerror(error.errno or errno.EIO)})"
    return f"its checksum of {broken} does not fit" if broken else ""
