"""Copies of batches to the device while the device works on the batch before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["CopyAhead"]


class CopyAhead:
    """A data loader whose tensors are on the device one batch ahead of their use.

    Each batch is copied on a stream of its own as soon as the workers have it, so that
    the copy of one overlaps the step on the one before. It takes the loader's
    ``pin_memory=True``, and the memory of one more batch on the device. Random numbers
    and the order of batches are the loader's.

    Everything but iterating (``len``, ``dataset``, ``sampler``, ...) is the loader's.

    Args:
        loader: of batches.
        device: to copy to.
        copy: ``copy(batch, device)`` returns the batch there, by non-blocking copies,
            and the tensors that it made.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device,
        copy: Callable[[Any, torch.device], tuple[Any, list[Tensor]]],
    ) -> None:
        self.loader, self.device, self.copy = loader, device, copy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        streams: Any = torch.get_device_module(self.device)
        aside = streams.Stream()
        ahead: tuple[Any, list[Tensor], Any] | None = None
        for batch in self.loader:
            with streams.stream(aside):
                copied, tensors = self.copy(batch, self.device)
                done = aside.record_event()
            if ahead is not None:
                yield self._hand_over(streams, *ahead)
            ahead = copied, tensors, done
        if ahead is not None:
            yield self._hand_over(streams, *ahead)

    def _hand_over(
        self, streams: Any, batch: Any, tensors: list[Tensor], done: Any
    ) -> Any:
        """Let the stream of the step wait for the copy, and own its memory."""
        step = streams.current_stream()
        step.wait_event(done)
        for tensor in tensors:
            if tensor.device.type != "cpu":
                tensor.record_stream(step)
        return batch
