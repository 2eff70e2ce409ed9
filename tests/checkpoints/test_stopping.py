"""Signals are remembered until a step ends, on all ranks."""

import os
import signal
import subprocess
import sys

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader

from varcon_plugin.checkpoints.stopping import StopSignals, shield_worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.received()
        os.kill(os.getpid(), number)
        assert signals.received()
        assert signals.received()
    assert signal.getsignal(number) == before


def signalled(rank):
    with StopSignals() as signals:
        before = signals.received(dist.group.WORLD)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return before, signals.received(dist.group.WORLD)


def test_one_rank_tells_all(run_ranks):
    assert run_ranks(signalled, 2) == [(False, True)] * 2


def test_data_workers_live_through_the_signals():
    started = []
    loader = DataLoader(
        range(8), 1, num_workers=1, worker_init_fn=shield_worker(started.append)
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 7


EXIT = """
from torch.utils.data import DataLoader
from varcon_plugin.checkpoints.stopping import Interrupted, shield_worker
loader = DataLoader(range(8), 1, num_workers=1, worker_init_fn=shield_worker(None))
batches = iter(loader)
next(batches)
raise Interrupted("a.pth")
"""


def test_the_exit_code_asks_for_another_try_and_no_worker_holds_it_up():
    assert subprocess.run([sys.executable, "-c", EXIT], timeout=60).returncode == 75
