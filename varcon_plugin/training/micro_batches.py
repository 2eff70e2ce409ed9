"""Batches larger than memory: the model sees them piece by piece, the loss whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from varcon_plugin.training.views import by_size

__all__ = ["MicroBatches", "in_micro_batches"]

Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])


class MicroBatches(nn.Module):
    """A model that keeps the activations of ``size`` samples at a time, exactly.

    It returns what ``model`` returns for the whole batch. Whatever loss comes then sees
    the whole batch at once and its gradient is that of the whole batch, for any source
    of class references and any reduction, also with ``detach_centroids=False``: what is
    kept between the two passes is one embedding a sample and its gradient. The backward
    pass runs every micro-batch but the last a second time, so a step costs up to one
    more forward pass.

    Both passes of a micro-batch draw the same random numbers of torch (dropout, drop
    path) and run under the same autocast; its gradients are added up in the dtype of
    the parameters. Buffers are written by the first pass only: BatchNorm, which
    normalises over the micro-batch, updates its running statistics once for each.
    Random numbers of other libraries are not repeated.

    Across ranks: wrap this in `DistributedDataParallel`, not the model in it. Gradients
    are then reduced once a batch.

    Args:
        model: from (N, ...) to (N, D), or to several of those; row i of the output
            follows from row i of the input, BatchNorm apart.
        size: rows of a micro-batch, >= 1: views times images.

    Raises:
        ValueError: ``size`` is below 1.
        TypeError: ``model`` holds a `DistributedDataParallel`.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        check_size(size)
        if any(isinstance(m, DistributedDataParallel) for m in model.modules()):
            raise TypeError(
                "model must not be wrapped in DistributedDataParallel, which would "
                "reduce the gradients of every micro-batch: write "
                "DistributedDataParallel(MicroBatches(model, size))"
            )
        self.model = model
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model returns for ``inputs`` (N, ...)."""
        outputs: Tensor = in_micro_batches(self.model, inputs, self.size, [self.model])
        return outputs

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"size={self.size}"


def in_micro_batches(
    function: Callable[[Tensor], Outputs],
    inputs: Tensor | Sequence[Tensor],
    size: int | None,
    modules: Iterable[nn.Module],
) -> Outputs:
    """``function(inputs)``, as `MicroBatches` computes it.

    Args:
        function: from (N, ...) to (N, D), or to several of those.
        inputs: (N, ...), or several of them, such as views: the outputs are those of
            their concatenation, which is then never made.
        size: rows of a micro-batch, >= 1; None takes all at once, or all of one size
            of image.
        modules: those that ``function`` runs, whose buffers it may write to.
    """
    check_size(size)
    parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if size is None:
        return joined([function(batch) for batch in by_size(parts)])
    *first, last = [rows for part in parts for rows in torch.split(part, size)]
    outputs = []
    for rows in first:
        outputs.append(
            checkpoint(
                function,
                rows,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _buffers_untouched(modules)),
            )
            if torch.is_grad_enabled()
            else function(rows)
        )
        # Else gradients of all micro-batches would be added up at the half-precision
        # weights that they share.
        torch.clear_autocast_cache()
    outputs.append(function(last))  # the first that the backward pass needs
    return joined(outputs)


def joined(outputs: list[Outputs]) -> Outputs:
    """The rows of ``outputs``, of a function that returns one tensor or several."""
    if len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(torch.cat(pieces) for pieces in zip(*outputs, strict=True))


def check_size(size: int | None) -> None:
    """Raise ValueError if ``size`` is neither None nor a number of rows."""
    if size is not None and size < 1:
        raise ValueError(f"size of a micro-batch must be >= 1, got {size}")


@contextmanager
def _buffers_untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, what is written to buffers is lost."""
    parts = [part for module in modules for part in module.modules()]
    kept = [(part, dict(part._buffers)) for part in parts if part._buffers]
    for part, buffers in kept:
        for name, buffer in buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
