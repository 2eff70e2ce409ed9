"""The model behind a runner."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

__all__ = ["unwrapped"]


def unwrapped(runner: Runner) -> Any:
    """The runner's model without its DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
