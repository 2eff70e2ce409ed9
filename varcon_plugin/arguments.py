"""What `VarConLoss` asks of its arguments, and how it ends the run at wrong ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import agree_in_graph
from varcon_plugin.functional import VarConTerms, transforming

__all__ = [
    "argument_error",
    "by_sample",
    "check_on_device",
    "fail_in_graph",
    "no_terms",
    "reference_error",
]

NO_LABEL = (-1, -100)  # by which scikit-learn and torch mark what has none
UNLABELLED = (
    "there is no ignore_index: leave samples without a label out, as in "
    "criterion(embeddings[labels >= 0], labels[labels >= 0])"
)
UNSAID = "wrong arguments for VarConLoss: without torch.compile it says which"


def argument_error(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int | None,
    dim: int | None = None,
) -> Exception | None:
    """What is wrong with a batch, as the exception to raise; None if nothing is."""
    for name, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            return TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if embeddings.ndim != 2:
        return ValueError(
            "embeddings must be 2-D (N, D), or (B, V, D) with labels (B,), got shape "
            f"{tuple(embeddings.shape)}; concatenate several views along the first "
            "dimension"
        )
    if not embeddings.is_floating_point():
        return TypeError(f"embeddings must be floating, got {embeddings.dtype}")
    if labels.ndim != 1:
        return ValueError(
            f"labels must be 1-D class ids (N,), got shape {tuple(labels.shape)}; "
            "multi-hot labels are not supported, one-hot ones need argmax(dim=1)"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return TypeError(f"labels must be integer class ids, got {labels.dtype}")
    rows, given = embeddings.shape[0], labels.shape[0]  # len() would fix them in export
    if rows != given:
        return ValueError(
            f"embeddings and labels must have the same length, got {rows} and {given}; "
            "repeat the labels once for each view"
        )
    if given == 0:
        return ValueError(
            "embeddings must hold at least one sample, got an empty batch"
        )
    if embeddings.shape[1] == 0:
        return ValueError("embeddings must have at least one dimension, got D = 0")
    if dim is not None and embeddings.shape[1] != dim:
        return ValueError(
            f"embeddings must have the dimension of the centroids, {dim}, got "
            f"{embeddings.shape[1]}"
        )
    on_host = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    on_host = on_host and not transforming()
    return label_error(labels, num_classes) if on_host else None


def label_error(labels: Tensor, num_classes: int | None) -> ValueError | None:
    """Which label on the host is out of range, as the exception to raise."""
    ids = labels.to(torch.int64)  # unsigned integers have no min
    if num_classes is not None:
        wrong = ids != ids.clamp(0, num_classes - 1)
        expected = f"in [0, num_classes) = [0, {num_classes})"
    else:
        wrong, expected = unlabelled(ids), "class ids"
    if not wrong.any():
        return None
    first = int(ids[wrong][0])
    hint = f"; {UNLABELLED}" if first in NO_LABEL else ""
    return ValueError(f"labels must be {expected}, got {first}{hint}")


def unlabelled(ids: Tensor) -> Tensor:
    """Which labels say that there is none."""
    return (ids == NO_LABEL[0]) | (ids == NO_LABEL[1])


def reference_error(embeddings: Tensor, references: Any) -> Exception | None:
    """What is wrong with ``reference_embeddings``, as the exception to raise."""
    if references is None:
        return None
    if not isinstance(references, Tensor) or not references.is_floating_point():
        kind = getattr(references, "dtype", type(references).__name__)
        return TypeError(f"reference_embeddings must be a floating tensor, got {kind}")
    if references.shape != embeddings.shape:
        return ValueError(
            "reference_embeddings must have the shape of embeddings, "
            f"{tuple(embeddings.shape)}, got {tuple(references.shape)}"
        )
    return None


def by_sample(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, V, D) with labels (B,) as (B * V, D) with labels (B * V,); others as is."""
    if not (isinstance(embeddings, Tensor) and isinstance(labels, Tensor)):
        return embeddings, labels
    shape = embeddings.shape
    if len(shape) != 3 or labels.shape != shape[:1]:
        return embeddings, labels
    return embeddings.flatten(0, 1), labels.repeat_interleave(shape[1])


def check_on_device(
    labels: Tensor, num_classes: int | None, group: ProcessGroup | None
) -> None:
    """Have a device, or a compiled graph, end the run at labels out of range.

    Without waiting for it. `argument_error` has looked at those of the host.
    """
    compiling = torch.compiler.is_compiling()
    if not (compiling or labels.device.type == "cuda"):
        return
    ids = labels.to(torch.int64)
    if num_classes is None:
        inside = ~unlabelled(ids).any()
        message = f"labels must be class ids, not -1 or -100; {UNLABELLED}"
    else:
        inside = (ids == ids.clamp(0, num_classes - 1)).all()
        message = f"labels must be in [0, {num_classes})"
    if compiling and group is not None:
        agree_in_graph(inside, message, group)
    else:
        torch._assert_async(inside, message)


def fail_in_graph(embeddings: Tensor, group: ProcessGroup) -> None:
    """End the compiled graphs of all ranks of ``group`` when they run."""
    device = embeddings.device if isinstance(embeddings, Tensor) else None
    good = torch.zeros((), dtype=torch.bool, device=device)
    agree_in_graph(good, UNSAID, group)


def no_terms() -> VarConTerms:
    """What a compiled graph that has failed returns to nobody."""
    return VarConTerms(*torch.full((5,), torch.nan).unbind())
