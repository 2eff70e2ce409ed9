"""A damaged file costs its place in one batch, not the run."""

from __future__ import annotations

import logging
import os
import random
import zlib
from collections.abc import Sized
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

__all__ = ["CorruptImageError", "CorruptImages", "ReplaceCorrupt"]

logger = logging.getLogger(__name__)

MAX_DRAWS = 1000  # for one image; ``max_corrupt`` ends the run long before


class CorruptImageError(Exception):
    """A file cannot be read, or its pixels are not what it shows."""

    def __init__(self, reason: str, path: str = "bytes of unknown origin") -> None:
        super().__init__(reason, path)
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        shown = os.fsencode(self.path).decode(errors="backslashreplace")
        return f"{shown} cannot be used: {self.reason}"


class CorruptImages:
    """The files that could not be decoded, over all data workers of a process.

    A file counts once, however many epochs meet it. The table is in shared memory: keep
    one object, created before the workers are. Two workers that write at the same
    moment can lose an entry until the file is met again.

    Args:
        limit: how many different files may be damaged; 0 makes the first an error.

    Raises:
        ValueError: ``limit`` is negative.
    """

    def __init__(self, limit: int = 100) -> None:
        if limit < 0:
            raise ValueError(f"limit must be >= 0, got {limit}")
        self.limit = limit
        self._known = torch.zeros(limit, dtype=torch.int64)
        self._known.share_memory_()  # type: ignore[no-untyped-call]

    def report(self, error: CorruptImageError) -> str | None:
        """A line for the log, or None if this file has been reported.

        Raises:
            RuntimeError: more than ``limit`` files are damaged.
        """
        key = zlib.crc32(os.fsencode(error.path)) + 1
        known = self._known.tolist()
        if key in known:
            return None
        if not self.limit:
            raise RuntimeError(str(error)) from error
        if 0 not in known:
            raise RuntimeError(
                f"more than {self.limit} images are damaged (raise max_corrupt to go "
                f"on without them), at last: {error}"
            ) from error
        count = known.index(0)
        self._known[count] = key
        return (
            f"{error}. Replaced by another image, here and from now on "
            f"(damaged files: {count + 1}, at most {self.limit} allowed)"
        )


class SizedDataset(Sized, Protocol):
    """A map-style dataset."""

    def __getitem__(self, index: int) -> Any: ...


class ReplaceCorrupt(Dataset[Any]):
    """A dataset whose damaged images are replaced by others, drawn from `random`.

    Args:
        dataset: map-style; raises `CorruptImageError` as `TwoCrops` does.
        max_corrupt: how many different files may be damaged before it is an error.
    """

    def __init__(self, dataset: SizedDataset, max_corrupt: int = 100) -> None:
        self.dataset = dataset
        self.corrupt = CorruptImages(max_corrupt)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``, or a random one if its file is damaged.

        Raises:
            RuntimeError: more than ``max_corrupt`` files are damaged.
        """
        for _ in range(MAX_DRAWS):
            try:
                return self.dataset[index]
            except CorruptImageError as error:
                message = self.corrupt.report(error)
                if message:
                    logger.error(message)
            index = random.randrange(len(self.dataset))
        raise RuntimeError(f"no undamaged image in {MAX_DRAWS} draws")
