"""Fixtures shared by the tests."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ranks import TIMEOUT, in_group

GOLDEN = Path(__file__).with_name("golden.npz")
GOLDEN_CASES = sorted({key.split("/")[0] for key in np.load(GOLDEN).files})
RANKS = 4


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    """mmpretrain's train.py sets LOCAL_RANK, for which Lightning starts no process."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """What earlier tests compiled counts towards Dynamo's limit of recompilations."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(params=GOLDEN_CASES)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One case computed by the authors' code: inputs, loss terms, gradient; float64."""
    with np.load(GOLDEN) as archive:
        case = {
            key.split("/")[1]: torch.from_numpy(archive[key])
            for key in archive.files
            if key.startswith(request.param)
        }
    case["settings"] = {k: case.pop(k).item() for k in ("temperature", "epsilon")}
    return case


@pytest.fixture(scope="session")
def _pool() -> Iterator[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(RANKS) as pool:
        yield pool


@pytest.fixture
def run_ranks(_pool: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """``run_ranks(function, ranks, *args)``: what each gloo process returned.

    ``function(rank, *args)`` lives at the top of a test module and runs inside a
    process group of ``ranks`` (at most 4). An exception on any rank is raised here.
    """
    stores = iter(range(1000))

    def run(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        store = tmp_path / f"store_{next(stores)}"
        jobs = [(function, rank, ranks, store, args) for rank in range(ranks)]
        results: list[Any] = _pool.starmap_async(in_group, jobs, 1).get(2 * TIMEOUT)
        return results

    return run
