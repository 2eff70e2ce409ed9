"""The only place that talks to torch.distributed.

Class sums and counts travel between ranks, embeddings do not.
"""

from __future__ import annotations

import gc
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = [
    "Agreement",
    "active_group",
    "agree",
    "any_rank",
    "from_first_rank",
    "gather_equal",
    "gather_labels",
    "leave_group",
    "max_across_ranks",
    "rank_of",
    "scatter_sum",
    "sum_across_ranks",
    "text_from_first_rank",
    "world_size",
]

STORE_PATIENCE = timedelta(seconds=5)
MOST_TEXT = 2000  # bytes
REJECTED = "got arguments that VarConLoss rejects; the error raised there says which"


def active_group(group: ProcessGroup | None = None) -> ProcessGroup | None:
    """``group``, or the default one if None; None where there is nobody to talk to.

    Raises:
        ValueError: this process is not in ``group``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    ranks = dist.get_world_size(group)
    if ranks < 1:
        raise ValueError(
            f"process_group must contain this process, rank {dist.get_rank()}"
        )
    return group if ranks > 1 else None


def world_size(group: ProcessGroup | None) -> int:
    """Number of ranks in ``group``; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def rank_of(group: ProcessGroup | None) -> int:
    """This process's rank in ``group``; 0 for None."""
    return 0 if group is None else dist.get_rank(group)


def leave_group() -> None:
    """Destroy the default process group; call it when a program's work is done.

    Gloo's threads may still be letting go of tensors when the interpreter shuts down,
    and then abort the process. Destroying a group ends its threads once nothing holds
    it any more, so the caller must have dropped its DDP models.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def gather_equal(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """``tensor`` of every rank, stacked in rank order; without gradient.

    Every rank must call, with the same shape and dtype.
    """
    everyone = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    dist.all_gather(list(everyone), tensor.detach().contiguous(), group=group)
    return everyone


def any_rank(flag: bool, group: ProcessGroup | None) -> bool:
    """Whether ``flag`` is set on any rank of ``group``; every rank must call."""
    if group is None:
        return flag
    told = torch.tensor(int(flag), device=message_device(group))
    dist.all_reduce(told, dist.ReduceOp.MAX, group)
    return bool(told)


def from_first_rank(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """``tensor`` of rank 0 of ``group``. Every rank must call, with the same shape."""
    device = tensor.device
    if "cpu:" not in dist.get_backend_config(group):
        device = message_device(group)
    message = tensor.to(device, copy=True)
    dist.broadcast(message, dist.get_global_rank(group, 0), group=group)
    return message


def text_from_first_rank(text: str, group: ProcessGroup | None) -> str:
    """``text`` of rank 0, at most the first 2,000 bytes; every rank must call."""
    if group is None:
        return text
    content = text.encode()[:MOST_TEXT]
    message = torch.zeros(MOST_TEXT, dtype=torch.uint8)
    message[: len(content)] = torch.tensor([*content], dtype=torch.uint8)
    told = from_first_rank(message, group).cpu()
    return bytes(told[told != 0].tolist()).decode(errors="ignore")


class Agreement(NamedTuple):
    """What the ranks know of each other before they compute.

    Attributes:
        sizes: batch size of every rank.
        dtype: to compute in: float32, or the most precise of any rank.
        news: whether any rank said so.
    """

    sizes: list[int]
    dtype: torch.dtype
    news: bool


def agree(
    error: Exception | None,
    embeddings: Tensor,
    group: ProcessGroup,
    news: bool = False,
) -> Agreement:
    """Tell all ranks whether this one's arguments are good; raise on all if one is not.

    A rank that raised alone would leave the others waiting in their next collective.

    Args:
        error: what is wrong with this rank's arguments, or None.
        embeddings: this rank's, whose shape and dtype are sent.
        group: the ranks to agree with. Every one of them must call.
        news: something to tell the others.

    Raises:
        ValueError or TypeError: ``error``, naming this rank.
        RuntimeError: another rank's arguments are wrong; names that rank.
        ValueError: the embedding dimensions differ between ranks.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    shape = (-1, -1) if error else tuple(embeddings.shape)
    double = not error and embeddings.dtype == torch.float64
    mine = torch.tensor(
        (*shape, double, news), dtype=torch.int64, device=message_device(group)
    )
    try:
        sizes, dims, doubles, tidings = gather_equal(mine, group).T.tolist()
    except RuntimeError as reason:
        raise RuntimeError(
            f"rank {rank} of {ranks} waited in VarConLoss for the batch of the other "
            f"ranks, but {_absent(group)}; look for what ended or held it: every "
            f"rank must call the loss equally often ({reason})"
        ) from reason
    if error is not None:
        raise type(error)(f"rank {rank} of {ranks}: {error}")
    failed = [str(r) for r, size in enumerate(sizes) if size < 0]
    if failed:
        raise RuntimeError(
            f"rank {', '.join(failed)} of {ranks} {REJECTED} (this is rank {rank})"
        )
    if len(set(dims)) > 1:
        raise ValueError(
            f"embeddings must have the same dimension on every rank, got {dims} on "
            f"ranks 0 to {ranks - 1}"
        )
    dtype = torch.float64 if any(doubles) else torch.float32
    return Agreement(list(sizes), dtype, any(tidings))


def _absent(group: ProcessGroup) -> str:
    """Which ranks do not wait as this one does, asked of the store all started with."""
    key = "varcon_plugin/waiting/"
    missing = []
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"{key}{dist.get_rank()}", "")
        for number, other in enumerate(dist.get_process_group_ranks(group)):
            try:
                store.wait([f"{key}{other}"], STORE_PATIENCE)
            except RuntimeError:  # what all time-outs of torch.distributed are
                missing.append(str(number))
    except RuntimeError:
        return "one did not answer, nor did the store, which rank 0 keeps"
    return f"rank {', '.join(missing)} did not answer" if missing else "one went away"


def agree_in_graph(good: Tensor, message: str, group: ProcessGroup) -> None:
    """`agree` in a compiled graph: fails when it runs, on all ranks if on one.

    Args:
        good: (), bool, whether this rank's arguments are.
        message: what is wrong with them otherwise.
        group: the ranks to agree with. Every one of them must call.
    """
    bad = sum_across_ranks((~good).float(), group)
    torch._assert_async(good, message)
    torch._assert_async(bad == 0, f"another rank {REJECTED}")


def message_device(group: ProcessGroup) -> torch.device:
    """Where ``group`` takes small messages from: the host if its backend serves it.

    A group of NCCL alone does not: reading the message then waits for the device, which
    ``init_process_group("cpu:gloo,cuda:nccl")`` avoids.
    """
    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    if device is None:
        raise RuntimeError(f"no device for backend {dist.get_backend_config(group)}")
    return torch.device(device.type, torch.accelerator.current_device_index())


def gather_labels(
    labels: Tensor, sizes: list[int], group: ProcessGroup
) -> tuple[Tensor, slice]:
    """All ranks' labels in rank order (sum(sizes),), and where this rank's are.

    Or of any other tensor with a row a sample, (sum(sizes), ...), without gradient.
    """
    padded = labels.new_zeros(max(sizes), *labels.shape[1:])
    padded[: len(labels)] = labels
    everyone = gather_equal(padded, group)
    start = sum(sizes[: dist.get_rank(group)])
    gathered = torch.cat(
        [row[:size] for row, size in zip(everyone, sizes, strict=True)]
    )
    return gathered, slice(start, start + len(labels))


def scatter_sum(tensor: Tensor, sizes: list[int], group: ProcessGroup | None) -> Tensor:
    """This rank's rows of the sum over the ranks of ``tensor`` (sum(sizes), D).

    The way back of `gather_labels`, in one all-to-all and without gradient; added up in
    rank order on every rank.
    """
    if group is None:
        return tensor
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    parts = tensor.new_empty(ranks, sizes[rank], *tensor.shape[1:])
    dist.all_to_all_single(
        parts.flatten(0, 1),
        tensor.detach().contiguous(),
        [sizes[rank]] * ranks,
        sizes,
        group=group,
    )
    return parts.sum(dim=0)


def max_across_ranks(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """The largest over the ranks of each element; without gradient."""
    if group is None:
        return tensor
    largest = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return largest


def sum_across_ranks(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum over the ranks of ``group``, the same on each; ``tensor`` itself for None.

    Differentiable: the gradient of the sum over ranks of what each rank makes of the
    result reaches every rank's ``tensor`` (an all-reduce in the backward pass).
    """
    if group is None:
        return tensor
    if torch.is_grad_enabled() and tensor.requires_grad:
        summed: Tensor = _AllReduce.apply(tensor, group)
        return summed
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _AllReduce(torch.autograd.Function):
    """An all-reduce is its own adjoint, so it can be differentiated without end."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_across_ranks(tensor.detach(), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_across_ranks(grad, ctx.group), None
