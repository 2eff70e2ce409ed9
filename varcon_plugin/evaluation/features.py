"""Features of an encoder, extracted on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from varcon_plugin.distributed import (
    active_group,
    gather_equal,
    rank_of,
    world_size,
)
from varcon_plugin.evaluation.checks import check_finite

__all__ = ["evaluating", "extract_features"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; each submodule's own mode comes back after."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes.items():
            child.training = training


def extract_features(
    encoder: nn.Module,
    dataset: Dataset[Tensor],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    amp: bool = True,
    title: str = "features",
) -> Tensor | None:
    """Features of all images of ``dataset``, in its order.

    With a process group, every rank must call: each encodes every W-th image, and rank
    0 collects them. The result is the same for any number of ranks and any batch size,
    to rounding.

    Args:
        encoder: images (B, 3, H, W) to features (B, D); moved to ``device``.
        dataset: of N images (3, H, W), all of one size.
        batch_size: images for each rank at a time.
        workers: processes that read images, for each rank.
        device: where to encode.
        amp: mixed precision on a GPU (bfloat16 where it has it, else float16).
        title: of the progress bar, and of the split in errors.

    Returns:
        (N, D), float32, on the host; None on ranks other than 0.

    Raises:
        ValueError: the dataset is empty, the encoder does not return (B, D), or a
            feature is not finite.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if total == 0:
        raise ValueError(f"the {title} split is empty")
    group = active_group()
    rank, ranks = rank_of(group), world_size(group)
    share = -(-total // ranks)
    # the last round may lack images for some ranks: repeats, cut off below
    mine = [min(rank + ranks * i, total - 1) for i in range(share)]
    device = torch.device(device)
    loader: DataLoader[Tensor] = DataLoader(
        Subset(dataset, mine),
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # leaves the seeds of a training run alone
    )
    encoder = encoder.to(device)
    collected: list[Tensor] = []
    with evaluating(encoder), autocast(device, amp):
        for images in shown(loader, title, rank):
            features = encoder(images.to(device, non_blocking=True)).float()
            if features.ndim != 2 or len(features) != len(images):
                raise ValueError(
                    f"the encoder must return features (B, D), got shape "
                    f"{tuple(features.shape)} for {len(images)} images"
                )
            if group is not None:
                features = gather_equal(features, group).transpose(0, 1).flatten(0, 1)
            if rank == 0:
                collected.append(features.cpu())
    if rank != 0:
        return None
    features = torch.cat(collected)[:total]
    check_finite(features, title)
    return features


def shown(loader: Iterable[Tensor], title: str, rank: int) -> Iterable[Tensor]:
    """``loader`` with a progress bar, on the terminal of rank 0."""
    console = Console(stderr=True)
    hidden = rank != 0 or not console.is_terminal
    return track(loader, title, console=console, disable=hidden, transient=True)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Mixed precision on a GPU; nothing on a CPU, or if not ``enabled``."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    dtype = torch.float16 if half else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled and device.type != "cpu")
