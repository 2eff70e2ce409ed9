"""Random numbers that are the same on every rank and device, and under compilation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["uniform_draws"]

WORD = 2**32


def uniform_draws(
    number: int, below: int, step: Tensor, seed: int, device: torch.device
) -> Tensor:
    """(number,), int64, uniform in [0, below), with repeats, on ``device``.

    A function of ``seed`` and ``step`` alone: there is no state to keep, and drawing
    again gives the same.

    Args:
        number: how many.
        below: far below 2^63, of which it is a remainder.
        step: (), int64, counts the calls; may be on the host.
        seed: any integer.
        device: where they are made.
    """
    key = mix(mix(step + seed % WORD) + seed // WORD % WORD)
    index = mix(torch.arange(2 * number, device=device))
    high, low = mix(index ^ key).view(2, number)
    drawn: Tensor = ((high << 31) + (low >> 1)) % below
    return drawn


def mix(words: Tensor) -> Tensor:
    """A hash of 32 bits, in [0, 2^32), of each of ``words`` (int64); exact anywhere.

    Three shifts and two products, with constants that Hash Prospector found (Wellons).
    """
    x = words & (WORD - 1)
    x = (x ^ (x >> 16)) * 0x21F0AAAD & (WORD - 1)
    x = (x ^ (x >> 15)) * 0x735A2D97 & (WORD - 1)
    return x ^ (x >> 15)
