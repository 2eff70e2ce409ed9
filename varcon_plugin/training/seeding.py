"""Random numbers that depend on the seed and the step of training, not on history."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import get_worker_info

__all__ = ["WorkerSeed", "mix_seeds", "seed_all"]

UNSET = -1


def mix_seeds(*seeds: int) -> int:
    """One 63-bit seed from integers >= 0; neighbours give unrelated streams."""
    return int(
        np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def seed_all(seed: int) -> None:
    """Seed `random`, `numpy.random` and torch of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  hosts draw from the global one
    torch.manual_seed(seed)


class WorkerSeed:
    """Restarts the random numbers of data workers when the training process says so.

    Workers that live for several epochs keep drawing from where they are, so a resumed
    run repeats the first epoch's numbers. With `restart` called at the start of every
    epoch and `apply` before every sample, the numbers follow from the arguments of
    `restart` and the worker's number alone. Without `restart`, `apply` does nothing.

    The state is in shared memory: keep one object, created before the workers are.
    """

    def __init__(self) -> None:
        self._shared = torch.full((3,), UNSET)  # seed, rank, step
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._applied = (UNSET,) * 4

    def restart(self, seed: int, rank: int, step: int) -> None:
        """Set, in the training process, what the workers' next numbers follow from.

        Args:
            seed: of the run, >= 0.
            rank: of this process.
            step: grows during training, e.g. the epoch or the iteration.
        """
        self._shared.copy_(torch.tensor([seed, rank, step]))

    def apply(self) -> None:
        """Call `seed_all` if `restart` was called since; in the worker."""
        seed, rank, step = self._shared.tolist()
        if seed == UNSET:
            return
        info = get_worker_info()
        key = (seed, rank, step, 0 if info is None else info.id + 1)
        if key != self._applied:  # a forked worker inherits its parent's
            self._applied = key
            seed_all(mix_seeds(*key))
