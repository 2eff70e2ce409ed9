"""A batch in pieces has the gradient of the batch in one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.training.micro_batches import MicroBatches, in_micro_batches

Run = Callable[..., list[Any]]
D, OUT, C, STEPS = 6, 4, 5, 3
SIZES = {1: (13,), 2: (5, 11), 4: (3, 1, 7, 4)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"leave_one_out": True},
    {"detach_centroids": False},
    {"reduction": "none"},
    {"momentum": 0.8},
    {"momentum": 0.8, "num_negatives": 3},
    {"momentum": 0.8, "reduction": "none"},
]


def network(*between: nn.Module) -> nn.Sequential:
    """The same every time, in float64, without batch statistics but for ``between``."""
    torch.manual_seed(1)
    layers = (nn.Linear(D, 8), nn.Tanh(), *between, nn.LayerNorm(8), nn.Linear(8, OUT))
    return nn.Sequential(*layers).double()


def criterion(**options: Any) -> VarConLoss:
    bank = {k: options.pop(k) for k in ("momentum", "num_negatives") if k in options}
    if bank:
        options["centroids"] = MomentumCentroids(C, OUT, **bank).double()
    return VarConLoss(**options)


def global_batch(ranks: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and sample weights; class 4 occurs on the last rank alone."""
    generator = torch.Generator().manual_seed(step)
    samples = sum(SIZES[ranks])
    x = torch.randn(samples, D, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    labels[-1] = 4
    return x, labels, torch.rand(samples, dtype=torch.float64, generator=generator)


def mine(rank: int, ranks: int) -> slice:
    start = sum(SIZES[ranks][:rank])
    return slice(start, start + SIZES[ranks][rank])


def train(
    model: nn.Module, options: dict[str, Any], ranks: int, rows: slice
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients, added up over several steps, and the state of the loss."""
    loss_module = criterion(**options)
    for step in range(STEPS):
        x, labels, weight = (tensor[rows] for tensor in global_batch(ranks, step))
        loss = loss_module(model(x), labels)
        if loss.ndim:
            processes = dist.get_world_size() if dist.is_initialized() else 1
            loss = processes * (weight * loss).sum() / sum(SIZES[ranks])
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return gradients, dict(loss_module.state_dict())


def on_a_rank(rank: int, ranks: int, size: int) -> list[Any]:
    results = []
    for options in OPTIONS:
        model = DistributedDataParallel(MicroBatches(network(), size))
        results.append(train(model, dict(options), ranks, mine(rank, ranks)))
    return results


@pytest.mark.parametrize(("ranks", "size"), [(1, 3), (2, 2), (4, 3)])
def test_gradient_and_bank_are_those_of_one_pass_of_one_process(
    ranks: int, size: int, run_ranks: Run
) -> None:
    results = run_ranks(on_a_rank, ranks, ranks, size)
    for i, options in enumerate(OPTIONS):
        gradients, state = train(network(), dict(options), ranks, slice(None))
        assert max(g.abs().max() for g in gradients) > 0.01
        for found, found_state in (result[i] for result in results):
            for one, other in zip(found, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
            for name, value in state.items():
                torch.testing.assert_close(found_state[name], value, rtol=0, atol=1e-11)


def reductions(rank: int, size: int) -> int:
    """How often DDP reduces a bucket of gradients in one step."""
    model = DistributedDataParallel(MicroBatches(network(), size))
    calls = []

    def count(state, bucket):  # DDP compares annotations with types, not names
        calls.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, count)
    x, labels, _ = global_batch(2, 0)
    VarConLoss()(model(x), labels).backward()
    return len(calls)


def test_gradients_are_reduced_once_a_batch(run_ranks: Run) -> None:
    assert run_ranks(reductions, 2, 1) == run_ranks(reductions, 2, 100) == [1, 1]


def piece_by_piece(model: nn.Module, x: Tensor, size: int) -> Tensor:
    """What micro-batches compute, all activations kept."""
    return torch.cat([model(rows) for rows in x.split(size)])


@pytest.mark.parametrize(
    "layers",
    [(nn.Dropout(0.5),), (nn.BatchNorm1d(8),), (nn.BatchNorm1d(8), nn.Dropout(0.5))],
    ids=str,
)
def test_both_passes_draw_the_same_and_statistics_move_once(
    layers: tuple[nn.Module, ...],
) -> None:
    x, labels, _ = global_batch(1, 0)
    results = []
    for forward in (
        lambda model: piece_by_piece(model, x, 5),
        lambda model: MicroBatches(model, 5)(x),
    ):
        model = network(*layers).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
        torch.manual_seed(7)
        loss = VarConLoss()(forward(model), labels)
        loss.backward()
        after = torch.rand(3)  # the stream of random numbers goes on as if never left
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        buffers = [b.clone() for b in model.buffers()]
        results.append((loss.detach(), after, *gradients, *buffers))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_half_precision_gradients_are_added_up_in_full() -> None:
    """512 gradients of 1: a bfloat16 sum stops at 256."""
    model = nn.Linear(1, 1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        MicroBatches(model, 1)(torch.ones(512, 1)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == 512


@pytest.mark.parametrize("overflow", [False, True])
def test_a_scaler_works_and_so_does_a_skipped_step(overflow: bool) -> None:
    x, labels, _ = global_batch(1, 0)
    gradients = []
    for size in (100, 4):
        model = MicroBatches(network().float(), size)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1e38 if overflow else 2.0**10)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = model(x.float())
        loss = (1e6 if overflow else 1) * VarConLoss()(embeddings, labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients.append([p.grad for p in model.parameters()])
        scaler.step(optimizer)
        for old, new in zip(before, model.parameters(), strict=True):
            assert torch.equal(old, new) == overflow
    for one, other in zip(*gradients, strict=True):
        if not overflow:
            torch.testing.assert_close(other, one, rtol=0.05, atol=0.01)


class Alive(nn.Module):
    """Counts the rows of its outputs that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.peak = 0

    def forward(self, x: Tensor) -> Tensor:
        out = x.exp()
        self.rows += len(x)
        self.peak = max(self.peak, self.rows)
        weakref.finalize(out.untyped_storage(), self.let_go, len(x))
        return out

    def let_go(self, rows: int) -> None:
        self.rows -= rows


@pytest.mark.parametrize(("size", "peak"), [(None, 64), (4, 4), (5, 5)])
def test_activations_of_one_micro_batch_are_alive(size: int | None, peak: int) -> None:
    alive = Alive()
    model = nn.Sequential(nn.Linear(D, 8), alive, nn.Linear(8, OUT))
    in_micro_batches(model, torch.randn(64, D), size, [model]).sum().backward()
    assert alive.peak == peak
    assert alive.rows == 0


@pytest.mark.parametrize("training", [True, False])
def test_several_inputs_several_outputs_and_no_gradient(training: bool) -> None:
    model = network()
    x = global_batch(1, 0)[0]
    with torch.set_grad_enabled(training):
        z, doubled = in_micro_batches(
            lambda rows: (model(rows), 2 * rows), x.split(8), 4, [model]
        )
    torch.testing.assert_close(z, model(x))
    assert torch.equal(doubled, 2 * x)
    assert z.requires_grad == training


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one(size: int) -> None:
    with pytest.raises(ValueError, match=f"must be >= 1, got {size}"):
        MicroBatches(network(), size)
    with pytest.raises(ValueError, match=f"must be >= 1, got {size}"):
        in_micro_batches(network(), torch.zeros(2, D), size, [])


def wrapped_the_other_way(rank: int) -> str:
    try:
        MicroBatches(DistributedDataParallel(network()), 2)
    except TypeError as error:
        return str(error)
    return ""


def test_ddp_goes_around_not_inside(run_ranks: Run) -> None:
    for message in run_ranks(wrapped_the_other_way, 2):
        assert "DistributedDataParallel(MicroBatches(model, size))" in message


def test_a_compiled_model() -> None:
    x, labels, _ = global_batch(1, 0)
    gradients = []
    for backend in (None, "aot_eager"):
        model = network()
        if backend:
            model.compile(backend=backend)
        VarConLoss()(MicroBatches(model, 4)(x), labels).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)
