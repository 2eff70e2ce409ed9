"""A bank spread over the ranks is the whole bank: loss, gradient, state, checkpoint."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn.parallel import DistributedDataParallel

from varcon_plugin import MomentumCentroids, VarConLoss, varcon_terms
from varcon_plugin.functional import normalize
from varcon_plugin.training import MicroBatches

Run = Callable[..., list[Any]]
C, D, MOMENTUM = 9, 5, 0.8
SIZES = {1: (13,), 2: (5, 11), 3: (4, 1, 9), 4: (3, 1, 7, 4)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_negatives": 4},
    {"accumulation_steps": 2},
    {"num_negatives": 3, "accumulation_steps": 3},
    {"reduction": "none"},
    {"temperature": 0.002, "epsilon": 0.0005},
]
SAVED = ("means", "counts", "seen", "pending_sums", "pending_counts")
pytestmark = pytest.mark.filterwarnings(
    # torch's own, about how it saves alone, without a process group
    "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning",
)


def criterion(num_classes: int = C, dim: int = D, **options: Any) -> VarConLoss:
    ours = {"num_negatives", "accumulation_steps", "sharded"} & set(options)
    bank = {name: options.pop(name) for name in ours}
    centroids = MomentumCentroids(num_classes, dim, MOMENTUM, **bank).double()
    return VarConLoss(centroids=centroids, **options)


def steps(samples: int) -> Iterator[tuple[bool, Tensor, Tensor, Tensor]]:
    """Whether to train, embeddings, labels and weights.

    Few classes first; later the others, also such that are met in evaluation first.
    """
    for seed in range(9):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, D, dtype=torch.float64, generator=generator)
        y = torch.randint(C if seed > 3 else 3, (samples,), generator=generator)
        weight = torch.rand(samples, dtype=torch.float64, generator=generator)
        yield seed not in (4, 7), x, y, weight


def mine(rank: int, ranks: int) -> slice:
    start = sum(SIZES[ranks][:rank])
    return slice(start, start + SIZES[ranks][rank])


def history(loss_module: VarConLoss, samples: int, rows: slice, ranks: int) -> Any:
    """Loss and gradient of every step, the gradient of what DDP would average."""
    results = []
    for training, *tensors in steps(samples):
        x, y, weight = (tensor[rows] for tensor in tensors)
        x = x.clone().requires_grad_()
        loss = loss_module.train(training)(x, y)
        if loss.ndim:
            loss = ranks * (weight * loss).sum() / samples
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0] / ranks))
    return results


def local_state(loss_module: VarConLoss) -> dict[str, Tensor]:
    bank = loss_module.centroids
    assert isinstance(bank, MomentumCentroids)
    used = C if bank.shard is None else bank.shard.used
    return {name: getattr(bank, name)[:used].clone() for name in SAVED}


def on_a_rank(rank: int, ranks: int) -> list[Any]:
    results = []
    for options in OPTIONS:
        loss_module = criterion(sharded=True, **options)
        found = history(loss_module, sum(SIZES[ranks]), mine(rank, ranks), ranks)
        results.append((found, local_state(loss_module)))
    return results


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_loss_gradient_and_bank_equal_those_of_the_whole_bank(
    ranks: int, run_ranks: Run
) -> None:
    results = run_ranks(on_a_rank, ranks, ranks)
    exact = {"rtol": 0, "atol": 1e-11}
    for i, options in enumerate(OPTIONS):
        whole = criterion(**options)
        expected = history(whole, sum(SIZES[ranks]), slice(None), 1)
        for step, (loss, gradient) in enumerate(expected):
            losses, gradients = zip(*(r[i][0][step] for r in results), strict=True)
            mean = torch.stack(losses).mean()
            torch.testing.assert_close(mean, loss, **exact, msg=f"{options} {step}")
            torch.testing.assert_close(torch.cat(gradients), gradient, **exact)
        for name, value in local_state(whole).items():
            joined = torch.cat([r[i][1][name] for r in results])
            torch.testing.assert_close(joined, value, **exact, msg=name)


def test_it_works_without_a_process_group() -> None:
    one, other = criterion(sharded=True), criterion()
    for found, expected in zip(
        history(one, 13, slice(None), 1),
        history(other, 13, slice(None), 1),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=0, atol=1e-12)


def number_of_others(rank: int) -> Any:
    loss_module = criterion(sharded=True)
    for _, x, y, _ in steps(16):
        loss_module(x[mine(rank, 2)], y[mine(rank, 2)])
    bank = loss_module.centroids
    before = bank.means.clone()
    loss_module.eval()
    x = torch.randn(2, D, dtype=torch.float64)
    terms = loss_module.forward_components(x, torch.tensor([0, 8]))
    return x, before, terms


def test_n_and_the_sum_over_classes_are_those_of_all_ranks(run_ranks: Run) -> None:
    """What sharded label smoothing got wrong elsewhere (Megatron-LM issue 737)."""
    results = run_ranks(number_of_others, 2)
    means = torch.cat([means for _, means, _ in results])[:C]
    assert len(means) == C
    for x, _, terms in results:
        expected = varcon_terms(
            normalize(x),
            torch.tensor([0, 8]),
            normalize(means),
            temperature=0.1,
            epsilon=0.02,
        )
        for found, value in zip(terms[1:], expected[1:], strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=1e-12)


def in_micro_batches(rank: int, size: int) -> list[Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, D)).double()
    wrapped = DistributedDataParallel(MicroBatches(model, size))
    loss_module = criterion(sharded=True)
    for _, x, y, _ in steps(16):
        loss_module(wrapped(x[mine(rank, 2)]), y[mine(rank, 2)]).backward()
    return [p.grad for p in model.parameters()] + [loss_module.centroids.means]


def test_micro_batches(run_ranks: Run) -> None:
    whole = run_ranks(in_micro_batches, 2, 100)
    for one, other in zip(whole, run_ranks(in_micro_batches, 2, 3), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@contextmanager
def collectives() -> Iterator[list[tuple[str, int]]]:
    """Names and numbers of elements handed over by this rank."""
    calls: list[tuple[str, int]] = []

    def counting(name: str, position: int) -> Any:
        original = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args[position].numel()))
            return original(*args, **kwargs)

        return patch.object(dist, name, counted)

    with (
        counting("all_gather", 1),
        counting("all_reduce", 0),
        counting("all_to_all_single", 1),
        counting("broadcast", 0),
    ):
        yield calls


def on_the_wire(rank: int, num_classes: int, gradient: bool) -> list[Any]:
    loss_module = criterion(num_classes, sharded=True)
    x, y = torch.randn(SIZES[4][rank], D).double(), torch.arange(SIZES[4][rank])
    loss_module(x, y)  # the first batch compares the banks of the ranks
    with collectives() as calls:
        loss_module(x.requires_grad_(gradient), y)
    return calls


@pytest.mark.parametrize("num_classes", [9, 900])
@pytest.mark.parametrize("gradient", [True, False])
def test_what_travels_is_what_the_module_says_and_not_the_bank(
    num_classes: int, gradient: bool, run_ranks: Run
) -> None:
    samples, most = sum(SIZES[4]), max(SIZES[4])
    expected = [
        ("all_gather", 4),
        ("all_gather", most),
        ("all_gather", most * D),
        ("all_reduce", samples + D + 2),
        ("all_reduce", samples),
        ("all_reduce", 2 * samples),
        ("all_to_all_single", samples * D),
    ][: None if gradient else -1]
    assert run_ranks(on_the_wire, 4, num_classes, gradient) == [expected] * 4


def bytes_held(rank: int, num_classes: int) -> int:
    loss_module = VarConLoss(centroids=MomentumCentroids(num_classes, D, sharded=True))
    loss_module(torch.randn(6, D), torch.arange(6) + rank)
    bank = loss_module.centroids
    return sum(x.nbytes for x in vars(bank).values() if isinstance(x, Tensor))


def test_a_rank_holds_its_part(run_ranks: Run) -> None:
    whole = bytes_held(0, 1000)
    for part in run_ranks(bytes_held, 4, 1000):
        assert part == pytest.approx(whole / 4, abs=8)


def observed(rank: int, sharded: bool) -> list[Any]:
    """Each sample's own reference, in each step."""
    loss_module = criterion(sharded=sharded)
    seen: list[Any] = []

    def observer(observation: Any) -> None:
        references, rows = observation.references, observation.references.targets
        seen.append((references.centroids[rows].clone(), references.present[rows]))

    loss_module.register_observer(observer)
    for training, x, y, _ in steps(16):
        loss_module.train(training)(x[mine(rank, 2)], y[mine(rank, 2)])
    return seen


def test_observers_see_the_references_of_the_batch(run_ranks: Run) -> None:
    whole = run_ranks(observed, 2, False)
    torch.testing.assert_close(run_ranks(observed, 2, True), whole, rtol=0, atol=1e-12)


def not_finite(rank: int) -> list[bool]:
    loss_module = criterion(sharded=True)
    good = torch.randn(9, D).double(), torch.arange(9)
    loss_module(*good)
    state = {k: v.clone() for k, v in local_state(loss_module).items()}
    x = good[0].clone()
    if rank == 1:
        x[0] = torch.nan  # class 0, held by rank 0 alone
    loss = loss_module(x, good[1])
    after = local_state(loss_module)
    return [bool(loss.isnan()), all(torch.equal(after[k], state[k]) for k in state)]


def test_a_batch_that_is_not_finite_moves_no_part(run_ranks: Run) -> None:
    assert run_ranks(not_finite, 3) == [[True, True]] * 3


def errors(rank: int, fault: str) -> str:
    options: dict[str, Any] = {"sharded": True}
    if fault == "classes":
        options["num_classes"] = 9 + rank
    if fault == "group":
        options["gather_distributed"] = False
    try:
        loss_module = criterion(**options)
        x = torch.randn(4, D).double().requires_grad_()
        loss = loss_module(x, torch.arange(4))
        if fault == "twice":
            torch.autograd.grad(loss, x, create_graph=True)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("classes", "num_classes of a bank spread over the ranks must be the same"),
        ("group", "spread over the 2 ranks .* but the loss runs on 1"),
        ("twice", "no second derivative"),
    ],
)
def test_one_clear_error_on_all_ranks(fault: str, message: str, run_ranks: Run) -> None:
    for found in run_ranks(errors, 2, fault):
        assert re.search(message, found), found


def resumed(rank: int, ranks: int, load: str, save: str) -> Any:
    """Load if there is something, train two steps of what follows, save."""
    loss_module = criterion(sharded=True, num_negatives=4, accumulation_steps=5)
    if load:
        state = {"criterion": loss_module.state_dict()}
        dcp.load(state, checkpoint_id=load)
        loss_module.load_state_dict(state["criterion"])
    found = local_state(loss_module)
    for _, x, y, _ in list(steps(sum(SIZES[ranks])))[:3]:
        loss_module(x[mine(rank, ranks)], y[mine(rank, ranks)])
    with collectives() as calls:
        dcp.save({"criterion": loss_module.state_dict()}, checkpoint_id=save)
    sent = max((count for name, count in calls if name != "broadcast"), default=0)
    return found, local_state(loss_module), sent


def test_resumed_on_other_numbers_of_ranks_to_the_last_bit(
    run_ranks: Run, tmp_path: Path
) -> None:
    load = ""
    saved: dict[str, Tensor] = {}
    for ranks in (4, 3, 1, 2):
        save = str(tmp_path / f"on_{ranks}")
        results = run_ranks(resumed, ranks, ranks, load, save)
        for name in saved:
            joined = torch.cat([found[name] for found, _, _ in results])
            assert torch.equal(joined, saved[name]), (ranks, name)
        saved = {
            name: torch.cat([after[name] for _, after, _ in results]) for name in SAVED
        }
        assert saved["pending_counts"].any()
        load = save
    file = tmp_path / "whole.pth"  # the single file, when asked for
    dcp_to_torch_save(load, file)
    state = torch.load(file, weights_only=True)["criterion"]
    whole = criterion(num_negatives=4, accumulation_steps=5)
    whole.load_state_dict(state)
    for name, value in saved.items():
        assert torch.equal(getattr(whole.centroids, name), value), name
    assert whole.centroids.steps == 4 * 3
    for result in run_ranks(from_single_file, 3, str(file)):
        assert result == [True] * len(SAVED)


def from_single_file(rank: int, file: str) -> list[bool]:
    state = torch.load(file, weights_only=True)["criterion"]
    loss_module = criterion(sharded=True, num_negatives=4, accumulation_steps=5)
    loss_module.load_state_dict(state)
    shard = loss_module.centroids.shard
    assert shard is not None
    rows = slice(shard.start, shard.start + shard.used)
    found = local_state(loss_module)
    return [torch.equal(found[n], state[f"centroids.{n}"][rows]) for n in SAVED]


def loaded_into(rank: int, path: str, num_classes: int, dim: int) -> str:
    loss_module = criterion(num_classes, dim, sharded=True)
    state = {"criterion": loss_module.state_dict()}
    try:
        dcp.load(state, checkpoint_id=path)
    except CheckpointException as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(("num_classes", "dim"), [(C + 1, D), (C, D + 1)])
def test_a_checkpoint_of_another_size(
    num_classes: int, dim: int, run_ranks: Run, tmp_path: Path
) -> None:
    path = str(tmp_path / "saved")
    dcp.save({"criterion": criterion().state_dict()}, checkpoint_id=path)
    for message in run_ranks(loaded_into, 2, path, num_classes, dim):
        assert "mismatch" in message.lower(), message
    other = criterion(num_classes, dim, sharded=True)
    with pytest.raises(RuntimeError, match=r"size mismatch for centroids\.means"):
        other.load_state_dict(copy.deepcopy(criterion().state_dict()))


def one_dies(rank: int, folder: str) -> None:
    """Two ranks; after the first step is saved, rank 1 is gone."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    loss_module = criterion(sharded=True)
    _, x, y, _ = next(steps(16))
    loss_module(x[mine(rank, 2)], y[mine(rank, 2)])
    dcp.save(loss_module.state_dict(), checkpoint_id=f"{folder}/saved")
    if rank == 1:
        os._exit(3)
    loss_module(x[mine(rank, 2)], y[mine(rank, 2)])


def test_a_rank_that_dies_ends_the_others_and_the_job_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=one_dies, args=(rank, str(tmp_path)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 3]  # an exception; gone
    loss_module = criterion(sharded=True)
    state = loss_module.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "saved")
    loss_module.load_state_dict(state)
    assert isinstance(loss_module.centroids, MomentumCentroids)
    assert loss_module.centroids.counts.sum() == 16
    _, x, y, _ = next(steps(16))
    assert loss_module(x, y).isfinite()
    assert loss_module.centroids.counts.sum() == 32
