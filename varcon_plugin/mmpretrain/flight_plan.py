"""What a run that passed its checks will do, in a few lines."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from torch.nn import functional as F

from varcon_plugin.functional import varcon_terms
from varcon_plugin.loss import VarConLoss
from varcon_plugin.mmpretrain.preflight import TRAIN, Flight, processes

__all__ = ["flight_plan"]

MOST_ROWS = 4096  # embeddings of the loss that is computed ahead


def flight_plan(cfg: Config, flight: Flight) -> str:
    """Images, views, batch, learning rate, the loss to expect, and devices."""
    lines = {
        "images": images(flight),
        "views": views(flight),
        "batch": batch(cfg, flight),
        "learning rate": learning_rate(cfg),
        "loss": expected_loss(cfg, flight),
        "devices": devices(),
        "work_dir": str(cfg.work_dir),
    }
    return "\n".join(f"{name:14} {line}" for name, line in lines.items() if line)


def images(flight: Flight) -> str:
    """How many, of how many classes."""
    labels = flight.labels
    classes = "" if labels is None else f" of {len(set(labels.tolist())):,} classes"
    return f"{len(flight.dataset):,}{classes}"


def view_list(flight: Flight) -> list[Tensor]:
    """The views of two images."""
    inputs = flight.inputs
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def views(flight: Flight) -> str:
    """How many an image, and their sizes."""
    given = view_list(flight)
    sizes = {f"{v.shape[-2]} x {v.shape[-1]}": None for v in given if v.ndim == 4}
    return f"{len(given)} an image, {' and '.join(sizes)} pixels"


def batch(cfg: Config, flight: Flight) -> str:
    """Images, views and steps."""
    each, count = cfg[TRAIN].get("batch_size", 1), processes()
    per_process = -(-len(flight.dataset) // count)
    dropped = bool(cfg[TRAIN].get("drop_last"))
    steps = per_process // each if dropped else -(-per_process // each)
    return (
        f"{each * count:,} images ({each * count * len(view_list(flight)):,} views), "
        f"{each:,} on each of {count} process{'es' * (count > 1)}; {steps:,} steps an "
        "epoch"
    )


def learning_rate(cfg: Config) -> str:
    """After scaling, if it is on."""
    rate = ((cfg.get("optim_wrapper") or {}).get("optimizer") or {}).get("lr")
    if rate is None:
        return ""
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    images = cfg[TRAIN].get("batch_size", 1) * processes()
    if scaling.get("enable") and base:
        return f"{rate * images / base:g} = {rate:g} x {images} / {base}"
    if base and base != images:
        return f"{rate:g}, made for {base} images (--auto-scale-lr scales it)"
    return f"{rate:g}"


def expected_loss(cfg: Config, flight: Flight) -> str:
    """Of VarCon: at chance, and for random embeddings of a batch."""
    loss = getattr(getattr(flight.model, "head", None), "loss_module", None)
    labels = flight.labels
    if not isinstance(loss, VarConLoss) or labels is None:
        return ""
    size = flight.embedding_size or 128
    rows = cfg[TRAIN].get("batch_size", 1) * processes() * len(view_list(flight))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(labels), (min(rows, MOST_ROWS),), generator=generator)
    drawn = labels[chosen]
    classes = len(set(drawn.tolist()))
    chance = varcon_terms(
        torch.ones(1, 1),
        torch.zeros(1, dtype=torch.int64),
        torch.ones(classes, 1),
        temperature=loss.temperature,
        epsilon=loss.epsilon,
    ).loss
    embeddings = F.normalize(torch.randn(len(drawn), size, generator=generator), dim=1)
    with torch.no_grad():
        start = VarConLoss(loss.temperature, loss.epsilon)(embeddings, drawn)
    bank = "" if type(loss.centroids).__name__ == "BatchCentroids" else ", batch means"
    return (
        f"{float(chance):.2f} at chance ({classes} classes in a batch), "
        f"{float(start):.2f} for random embeddings{bank}"
    )


def devices() -> str:
    """Where it runs."""
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads a process"
    names: dict[str, Any] = {}
    for index in range(torch.cuda.device_count()):
        names.setdefault(torch.cuda.get_device_name(index), []).append(index)
    return ", ".join(f"{len(found)} x {name}" for name, found in names.items())
