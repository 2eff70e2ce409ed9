"""Features of an encoder: extracted once, on any number of processes, and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from varcon_plugin.distributed import (
    active_group,
    gather_equal,
    rank_of,
    world_size,
)
from varcon_plugin.evaluation.checks import check_finite

__all__ = [
    "Features",
    "evaluating",
    "export_features",
    "extract_features",
    "fingerprint",
    "load_features",
    "weights_fingerprint",
]

CACHE_VERSION = "1"


class Features(NamedTuple):
    """Frozen features of a split, on the host.

    Attributes:
        features: (N, D), float32, in the order of the dataset.
        labels: (N,) or (N, C), see `varcon_plugin.evaluation.images.Images`.
        classes: their names.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]


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
    )
    encoder = encoder.to(device)
    collected: list[Tensor] = []
    with evaluating(encoder), autocast(device, amp):
        for images in track(loader, title, disable=rank != 0, transient=True):
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


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Mixed precision on a GPU; nothing on a CPU, or if not ``enabled``."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    dtype = torch.float16 if half else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled and device.type != "cpu")


def fingerprint(*parts: object) -> str:
    """A hash of the ``repr`` of everything that the features depend on."""
    return hashlib.sha256(repr((CACHE_VERSION, *parts)).encode()).hexdigest()


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of the architecture, every parameter and every buffer of ``module``."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def export_features(features: Features, path: Path, about: dict[str, str]) -> None:
    """Write ``path``.npz or ``path``.safetensors, as its suffix says.

    Both hold the arrays ``features`` and ``labels``; class names and ``about`` are the
    JSON string array ``about`` of the npz, or the metadata of the safetensors file.
    The file appears only once it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    text = about | {"classes": json.dumps(features.classes)}
    if path.suffix == ".npz":
        np.savez(
            temporary,
            about=np.array(json.dumps(text)),
            features=features.features.numpy(),
            labels=features.labels.numpy(),
        )
    elif path.suffix == ".safetensors":
        tensors = {
            "features": features.features.contiguous(),
            "labels": features.labels.contiguous(),
        }
        save_file(tensors, temporary, text)
    else:
        raise ValueError(f"features are exported to .npz or .safetensors, not {path}")
    temporary.chmod(0o644)  # safetensors' own would keep others from reading it
    temporary.replace(path)


def load_features(path: Path) -> tuple[Features, dict[str, str]]:
    """Features and ``about`` of a safetensors file of `export_features`."""
    with safe_open(path, framework="pt") as file:
        about = dict(file.metadata())
        features, labels = (file.get_tensor(name) for name in ("features", "labels"))
    return Features(features, labels, tuple(json.loads(about.pop("classes")))), about
