"""What the processes of the ``run_ranks`` fixture run.

A module of its own: several files are called conftest, so none can be pickled from.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DDP does; within a group it would hold on to the group
import torch.distributed as dist

from varcon_plugin.distributed import leave_group

TIMEOUT = 60  # seconds until a rank that waits for nobody gives up


def in_group(
    function: Callable[..., Any], rank: int, ranks: int, store: Path, args: Any
) -> Any:
    """What ``function(rank, *args)`` returns inside a gloo process group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT),
    )
    try:
        return function(rank, *args)
    finally:
        leave_group()
