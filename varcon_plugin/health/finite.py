"""Ends a run whose loss is no number any more, before it overwrites good weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["FiniteGuard", "LossNotFiniteError", "finite_weights"]

INTERVAL = 10  # steps from one look at the device to the next
SCALER_PATIENCE = 20  # a gradient scaler skips such steps and halves its scale, 2^16


class LossNotFiniteError(RuntimeError):
    """The loss, or a weight, is NaN or infinite; the message says what to do."""


class FiniteGuard:
    """Counts the last steps in a row whose loss is NaN or infinite.

    On the device of the loss: the host looks every 10 steps, so that it need not wait
    for the device at each. Without a gradient scaler one such step spoils the weights;
    with one it is skipped, and only 20 in a row mean that the network itself overflows.
    """

    def __init__(self) -> None:
        self._row: Tensor | None = None
        self._steps = 0

    def step(
        self,
        loss: Tensor,
        step: int,
        *,
        scaled: bool,
        checkpoint: Callable[[], str],
    ) -> None:
        """After step ``step`` (from 1) with ``loss``, a scalar.

        Args:
            loss: of this rank.
            step: number of the step, for the message.
            scaled: whether a gradient scaler skips steps that are not finite.
            checkpoint: asked, for the message, where the last good weights lie; empty
                if nowhere.

        Raises:
            LossNotFiniteError: the loss is not finite and stays so.
        """
        bad = ~loss.detach().isfinite().all()
        self._row = bad.long() if self._row is None else (self._row + 1) * bad
        self._steps += 1
        if self._steps % INTERVAL == 0:
            self.check(step, scaled=scaled, checkpoint=checkpoint)

    def check(self, step: int, *, scaled: bool, checkpoint: Callable[[], str]) -> None:
        """Look now; arguments and errors as for `step`."""
        row = 0 if self._row is None else int(self._row)
        if row >= (SCALER_PATIENCE if scaled else 1):
            raise LossNotFiniteError(
                f"the loss has not been finite for {row} steps up to step {step}: "
                f"{_advice(checkpoint)}"
            )


def finite_weights(model: nn.Module, checkpoint: Callable[[], str]) -> None:
    """Raise LossNotFiniteError if a parameter of ``model`` is NaN or infinite.

    Call it before weights are saved; it waits for the device once.
    """
    named = list(model.named_parameters())
    if not named:
        return
    finite = torch.stack([weight.detach().isfinite().all() for _, weight in named])
    if not bool(finite.all()):
        first = named[int((~finite).to(torch.uint8).argmax())][0]
        raise LossNotFiniteError(
            f"{int((~finite).sum())} of {len(named)} weights are not finite, {first} "
            f"the first, and were not saved: {_advice(checkpoint)}"
        )


def _advice(checkpoint: Callable[[], str]) -> str:
    path = checkpoint()
    good = f"the last good weights are {path}" if path else "none are saved"
    return f"try a lower learning rate, or bfloat16 in place of float16; {good}"
