"""Stop at the end of a step when asked to, with a checkpoint and an exit code."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import any_rank

__all__ = ["REQUEUE", "SIGNALS", "Interrupted", "StopSignals", "shield_worker"]

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # kill, Slurm's end; its warning before


class Interrupted(SystemExit):
    """The run has been saved and stops; as an exit, with the code `REQUEUE`."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(REQUEUE)
        self.checkpoint = checkpoint


class StopSignals:
    """Remembers SIGTERM and SIGUSR1 until the step has ended.

    Examples:
        >>> with StopSignals() as signals:
        >>>     for batch in loader:
        >>>         step(batch)
        >>>         if signals.received(group):
        >>>             ...  # save, on one rank; wait for it; raise Interrupted
    """

    def __init__(self) -> None:
        self._got = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over; from the main thread, before data workers start."""
        for number in SIGNALS:
            self._before.setdefault(number, signal.signal(number, self._note))

    def restore(self) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._got = True

    def received(self, group: ProcessGroup | None = None) -> bool:
        """Whether any rank of ``group`` has got a signal; the same answer on all.

        Every rank must call, after the same step.
        """
        return any_rank(self._got, group)


def shield_worker(init: Callable[[int], Any] | None) -> Callable[[int], None]:
    """A data loader's ``worker_init_fn`` whose workers live through the signals.

    Slurm and torchrun signal all processes of a job; a worker that died of it would end
    the step that is to be finished. Workers still end with their parent: when it exits
    SIGTERM, by which Python ends them, counts again.
    """
    return _Shield(init)


class _Shield:  # a class, for workers that are spawned pickle it
    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self.init = init
        self.closing = torch.zeros((), dtype=torch.bool)
        self.closing.share_memory_()  # type: ignore[no-untyped-call]
        atexit.register(self.closing.fill_, True)  # before Python ends its children

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        if self.init is not None:
            self.init(worker)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        if self.closing:
            os._exit(0)
