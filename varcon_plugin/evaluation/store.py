"""Features in files, found again by a fingerprint of what they depend on."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from varcon_plugin.checkpoints.writing import write_atomically

__all__ = [
    "Features",
    "export_features",
    "fingerprint",
    "load_features",
    "weights_fingerprint",
]

CACHE_VERSION = "2"


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
    JSON string array ``about`` of the npz, or the metadata of the safetensors file,
    where a checksum is added.
    The file appears whole or not at all.

    Raises:
        ValueError: another suffix.
        OSError: the disk is full, the folder cannot be written, ...
    """
    text = about | {"classes": json.dumps(features.classes)}
    tensors = {
        "features": features.features.contiguous(),
        "labels": features.labels.contiguous(),
    }
    if path.suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        note = np.array(json.dumps(text))
        write_atomically(path, lambda file: np.savez(file, about=note, **arrays))  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        content = save(tensors, text | {"crc32": checksum(tensors)})
        write_atomically(path, lambda file: file.write(content))
    else:
        raise ValueError(f"features are exported to .npz or .safetensors, not {path}")


def load_features(path: Path) -> tuple[Features, dict[str, str]]:
    """Features and ``about`` of a safetensors file of `export_features`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in ("features", "labels")}
        classes = tuple(json.loads(about.pop("classes")))
        intact = about.pop("crc32") == checksum(tensors)
    except Exception as error:  # a class of its own for each fault
        raise ValueError(f"{path} is damaged ({error!r}): delete it") from error
    if not intact:
        raise ValueError(f"{path} is damaged (its checksum differs): delete it")
    return Features(**tensors, classes=classes), about


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of the bytes of all ``tensors``, in their order."""
    crc = 0
    for tensor in tensors.values():
        crc = zlib.crc32(tensor.numpy().data, crc)
    return str(crc)
