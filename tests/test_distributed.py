"""The distributed contract, on real gloo processes.

The DDP-averaged gradient equals the gradient of the single-process loss on the
concatenated batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from varcon_plugin import VarConLoss
from varcon_plugin.distributed import leave_group, sum_across_ranks

Run = Callable[..., list[Any]]
D = 6
SIZES = {2: (5, 11), 4: (3, 1, 7, 4)}  # unequal; the smallest lacks most classes
OPTIONS: list[dict[str, Any]] = [
    {**option, "num_classes": num_classes}
    for option in (
        {},
        {"leave_one_out": True},
        {"detach_centroids": False},
        {"detach_centroids": False, "leave_one_out": True},
        {"reduction": "none"},
        {"reduction": "none", "detach_centroids": False},
    )
    for num_classes in (None, 6, 1000)
]


def global_batch(ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and sample weights of all ranks; class 3 is a singleton."""
    generator = torch.Generator().manual_seed(ranks)
    samples = sum(SIZES[ranks])
    x = torch.randn(samples, D, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    labels[-1] = 3
    return x, labels, torch.rand(samples, dtype=torch.float64, generator=generator)


def mine(rank: int, sizes: tuple[int, ...]) -> slice:
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def scalar(loss: Tensor, weight: Tensor, samples: int) -> Tensor:
    """What is optimised: the loss, or a weighted mean of per-sample losses."""
    if loss.ndim == 0:
        return loss
    return (weight * loss).sum() / samples


def single_process(x: Tensor, *rest: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    labels, weight = rest
    x = x.clone().requires_grad_()
    loss = scalar(VarConLoss(**options)(x, labels), weight, len(x))
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def rank_results(rank: int, ranks: int) -> list[tuple[Tensor, Tensor]]:
    local = [tensor[mine(rank, SIZES[ranks])] for tensor in global_batch(ranks)]
    results = []
    for options in OPTIONS:
        x = local[0].clone().requires_grad_()
        loss = scalar(VarConLoss(**options)(x, local[1]), local[2], sum(SIZES[ranks]))
        if options.get("reduction") == "none":
            loss = loss * ranks
        loss.backward()
        results.append((loss.detach(), x.grad / ranks))  # DDP divides by ranks
    return results


@pytest.mark.parametrize("ranks", [2, 4])
def test_value_and_gradient_equal_those_of_a_single_process(
    ranks: int, run_ranks: Run
) -> None:
    results = run_ranks(rank_results, ranks, ranks)
    for i, options in enumerate(OPTIONS):
        losses, grads = zip(*(result[i] for result in results), strict=True)
        loss, grad = single_process(*global_batch(ranks), **options)
        message = f"{options}: {{}}".format
        torch.testing.assert_close(
            torch.stack(losses).mean(), loss, rtol=0, atol=1e-12, msg=message
        )
        torch.testing.assert_close(
            torch.cat(grads), grad, rtol=0, atol=1e-12, msg=message
        )
        assert grad.abs().max() > 0.01


def linear_model() -> nn.Linear:
    model = nn.Linear(D, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def ddp_gradient(rank: int, options: dict[str, Any]) -> list[Tensor]:
    x, labels, _ = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
    model = linear_model()
    wrapped = DistributedDataParallel(model)
    VarConLoss(**options)(wrapped(x), labels).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 6}, {"detach_centroids": False}], ids=str
)
def test_gradient_of_a_model_in_ddp(options: dict[str, Any], run_ranks: Run) -> None:
    x, labels, _ = global_batch(2)
    model = linear_model()
    VarConLoss(**options)(model(x), labels).backward()
    for grads in run_ranks(ddp_gradient, 2, options):
        for actual, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad, rtol=0, atol=1e-12)


@contextmanager
def counted_elements() -> Iterator[list[int]]:
    """Number of elements this rank hands to each collective."""
    counts: list[int] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def counting_all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counts.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    def counting_all_gather(everyone: Any, tensor: Tensor, **kwargs: Any) -> Any:
        counts.append(tensor.numel())
        return all_gather(everyone, tensor, **kwargs)

    with (
        patch.object(dist, "all_reduce", counting_all_reduce),
        patch.object(dist, "all_gather", counting_all_gather),
    ):
        yield counts


def elements_sent(rank: int, options: dict[str, Any]) -> list[int]:
    x, labels, _ = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
    with counted_elements() as counts:
        VarConLoss(**options)(x.requires_grad_(), labels).backward()
    return counts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_classes": 6}, [4, 6 * (D + 1)]),  # shape, dtype, news; sums and counts
        ({}, [4, 11, 4 * (D + 1)]),  # labels, padded; the 4 classes that occur
        ({"num_classes": 1000}, [4, 11, 16 * (D + 1)]),  # no more rows than samples
        ({"num_classes": 6, "leave_one_out": True}, [4, 6 * (D + 1)]),
        # The gradient of the table comes back.
        ({"num_classes": 6, "detach_centroids": False}, [4] + 2 * [6 * (D + 1)]),
        ({"gather_distributed": False}, []),
    ],
    ids=str,
)
def test_sums_and_counts_travel_and_embeddings_do_not(
    options: dict[str, Any], expected: list[int], run_ranks: Run
) -> None:
    assert run_ranks(elements_sent, 2, options) == [expected] * 2


def raised(rank: int, faulty: int, fault: str) -> list[str]:
    """What a rank raises when another's arguments are bad, and then a good step."""
    criterion = VarConLoss(num_classes=4)
    good = torch.randn(3, D), torch.tensor([0, 1, 1])
    bad: Any = {
        "label": (good[0], torch.tensor([0, 1, 4])),
        "empty": (good[0][:0], good[1][:0]),
        "no tensor": ("three", good[1]),
        "dimension": (good[0][:, 1:], good[1]),
    }[fault]
    try:
        criterion(*(bad if rank == faulty else good))
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    return [message, str(criterion(*good).isfinite().item())]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("label", "ValueError: rank 1 of 2: labels must be in [0, num_classes)"),
        ("empty", "ValueError: rank 1 of 2: embeddings must hold at least one sample"),
        ("no tensor", "TypeError: rank 1 of 2: embeddings must be a tensor, got str"),
    ],
)
def test_one_rank_with_bad_arguments_makes_all_raise(
    fault: str, message: str, run_ranks: Run
) -> None:
    (others, recovered), (faulty, _) = run_ranks(raised, 2, 1, fault)
    assert faulty.startswith(message)
    assert others.startswith("RuntimeError: rank 1 of 2 got arguments that VarConLoss")
    assert recovered == "True"


def test_dimensions_that_differ_between_ranks(run_ranks: Run) -> None:
    for message, recovered in run_ranks(raised, 2, 1, "dimension"):
        assert "same dimension on every rank, got [6, 5] on ranks 0 to 1" in message
        assert recovered == "True"


def in_pairs(rank: int) -> tuple[Tensor, Tensor, str]:
    """Ranks 0 and 2 share a batch, so do 1 and 3."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    x, labels, _ = (tensor[mine(rank, SIZES[4])] for tensor in global_batch(4))
    x.requires_grad_()
    loss = VarConLoss(process_group=groups[rank % 2])(x, labels)
    loss.backward()
    try:
        VarConLoss(process_group=groups[1 - rank % 2])(x, labels)
    except ValueError as error:
        return loss.detach(), x.grad, str(error)
    return loss.detach(), x.grad, ""


def test_named_process_group(run_ranks: Run) -> None:
    results = run_ranks(in_pairs, 4)
    for pair in ((0, 2), (1, 3)):
        parts = [
            torch.cat([tensor[mine(rank, SIZES[4])] for rank in pair])
            for tensor in global_batch(4)
        ]
        loss, grad = single_process(*parts)
        losses, grads, errors = zip(*(results[rank] for rank in pair), strict=True)
        torch.testing.assert_close(torch.stack(losses).mean(), loss)
        torch.testing.assert_close(torch.cat(grads) / 2, grad, rtol=0, atol=1e-12)
        for rank, error in zip(pair, errors, strict=True):
            assert error == f"process_group must contain this process, rank {rank}"


def on_its_own(rank: int) -> tuple[Tensor, Tensor]:
    return single_process(
        *(tensor[mine(rank, SIZES[2])] for tensor in global_batch(2)),
        gather_distributed=False,
    )


def test_gather_distributed_false_is_the_loss_of_the_rank(run_ranks: Run) -> None:
    for rank, result in enumerate(run_ranks(on_its_own, 2)):
        local = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
        torch.testing.assert_close(result, single_process(*local))


def warned(rank: int, labels: list[int]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VarConLoss()(torch.randn(2, D), torch.tensor([labels[rank]] * 2))
    return [str(w.message) for w in caught]


def test_a_single_class_warns_only_if_all_ranks_hold_it(run_ranks: Run) -> None:
    assert run_ranks(warned, 2, [0, 1]) == [[], []]
    for messages in run_ranks(warned, 2, [1, 1]):
        assert len(messages) == 1
        assert "single class" in messages[0]


def second_derivative(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64) + rank
    x.requires_grad_()
    loss = sum_across_ranks(x**2, dist.group.WORLD).prod()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    return first.detach(), torch.autograd.grad(first.sum(), x)[0]


def test_sum_across_ranks_can_be_differentiated_twice(run_ranks: Run) -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    loss = 2 * (x**2).sum(0).prod()  # each of the two ranks has this loss
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    second = torch.autograd.grad(first.sum(), x)[0]
    for rank, result in enumerate(run_ranks(second_derivative, 2)):
        torch.testing.assert_close(result, (first[rank].detach(), second[rank]))


def compiled_and_not(rank: int) -> list[tuple[Tensor, Tensor]]:
    x, labels, _ = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
    criterion = VarConLoss(num_classes=6)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    results = []
    for function in (criterion, compiled):
        z = x.clone().requires_grad_()
        loss = function(z, labels)
        results.append((loss.detach(), torch.autograd.grad(loss, z)[0]))
    return results


def test_compiles_across_ranks(run_ranks: Run) -> None:
    for eager, compiled in run_ranks(compiled_and_not, 2):
        torch.testing.assert_close(compiled, eager)


def _gloo_threads_before_and_after_leaving(rank: int) -> tuple[int, int]:
    model = DistributedDataParallel(nn.Linear(D, D))
    model(torch.ones(2, D)).sum().backward()
    before = _gloo_threads()
    del model
    leave_group()
    return before, _gloo_threads()


def _gloo_threads() -> int:
    threads = Path("/proc/self/task").glob("*/comm")
    return sum(thread.read_text().startswith("pt_gloo") for thread in threads)


def test_leaving_the_group_ends_its_threads(run_ranks: Run) -> None:
    for before, after in run_ranks(_gloo_threads_before_and_after_leaving, 2):
        assert before > 0
        assert after == 0
    leave_group()  # nothing to leave: nothing happens


def precision_of(rank: int) -> tuple[Tensor, Tensor]:
    """Rank 0 in float64, rank 1 in float32 or less."""
    dtype = torch.float64 if rank == 0 else torch.float16
    x, labels, _ = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
    x = x.half().to(dtype).requires_grad_()
    loss = VarConLoss(num_classes=6)(x, labels)
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad


def test_ranks_agree_on_a_dtype(run_ranks: Run) -> None:
    results = run_ranks(precision_of, 2)
    x, labels, weight = global_batch(2)
    loss, gradient = single_process(x.half().double(), labels, weight, num_classes=6)
    mean = torch.stack([found[0] for found in results]).mean()
    torch.testing.assert_close(mean, loss, rtol=0, atol=1e-12)
    assert results[1][1].dtype == torch.float16
    first = results[0][1] / 2
    torch.testing.assert_close(first, gradient[: len(first)], rtol=0, atol=1e-12)


def sum_of(rank: int) -> Tensor:
    x, labels, _ = (tensor[mine(rank, SIZES[2])] for tensor in global_batch(2))
    return VarConLoss(reduction="sum")(x, labels)


def test_the_sum_is_over_the_global_batch(run_ranks: Run) -> None:
    x, labels, _ = global_batch(2)
    mean = torch.stack(run_ranks(sum_of, 2)).mean()
    torch.testing.assert_close(mean, VarConLoss()(x, labels) * len(x))


def one_leaves(rank: int) -> str:
    group = dist.new_group(timeout=timedelta(seconds=2))
    message = ""
    if rank != 1:
        with pytest.raises(RuntimeError) as error:
            VarConLoss(process_group=group)(torch.randn(4, D), torch.arange(4) % 2)
        message = str(error.value)
    dist.barrier()
    return message


def test_a_rank_that_does_not_answer_is_named(run_ranks: Run) -> None:
    with patch("varcon_plugin.distributed.STORE_PATIENCE", timedelta(seconds=1)):
        messages = run_ranks(one_leaves, 3)
    for rank in (0, 2):
        expected = f"rank {rank} of 3 waited in VarConLoss for the batch of the other "
        assert messages[rank].startswith(expected + "ranks, but rank 1 did not answer")


def compiled_errors(rank: int, fullgraph: bool) -> list[str]:
    """Each kind of mistake, on rank 1 alone."""
    good = torch.randn(6, D), torch.arange(6) % 3
    told = []
    for x, labels in (
        (good[0], good[1].float()),  # known while compiling
        (good[0][:, None, None], good[1]),
        (good[0], good[1] + 1),  # known only to the data
    ):
        torch._dynamo.reset()
        criterion: Any = VarConLoss(num_classes=3)
        compiled = torch.compile(criterion, fullgraph=fullgraph, backend="aot_eager")
        assert compiled(*good).isfinite()
        with pytest.raises(RuntimeError) as error:
            compiled(*(good if rank == 0 else (x, labels)))
        told.append(str(error.value))
    return told


@pytest.mark.parametrize("fullgraph", [True, False])
def test_an_error_on_one_rank_ends_all_under_compile(
    fullgraph: bool, run_ranks: Run
) -> None:
    others, own = run_ranks(compiled_errors, 2, fullgraph)
    assert ["rejects" in message for message in others] == [True] * 3
    expected = [*2 * ["wrong arguments for VarConLoss"], "labels must be in [0, 3)"]
    for message, start in zip(own, expected, strict=True):
        assert message.startswith(start)
