"""What wrappers hold: the model behind a runner, the datasets behind a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

__all__ = ["leaves", "nested", "unwrapped"]


def unwrapped(runner: Runner) -> Any:
    """The runner's model without its DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def leaves(dataset: Any) -> Iterator[Any]:
    """The datasets that read images: of RepeatDataset, ConcatDataset and the like."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from leaves(part)
    elif hasattr(dataset, "dataset"):
        yield from leaves(dataset.dataset)
    else:
        yield dataset


def nested(dataset: Any) -> Iterator[Any]:
    """A dataset and the datasets that it wraps, of a slice too."""
    yield dataset
    for name in ("dataset", "_dataset"):  # RepeatDataset and the like; a slice
        if hasattr(dataset, name):
            yield from nested(getattr(dataset, name))
    for part in getattr(dataset, "datasets", []):
        yield from nested(part)
