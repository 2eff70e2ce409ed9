"""Modules under the names they had up to 0.1: importing one gives the module of today.

The finder comes first: `augment` being `training`, others would find its files anew.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "MovedModules"]

PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    f"{PACKAGE}.{old}": f"{PACKAGE}.{new}"
    for old, new in {
        "augment": "training",
        "augment.batch": "training.batch_augment",
        "augment.color": "training.color",
        "augment.corrupt": "training.damaged",
        "augment.crops": "training.crops",
        "augment.seeding": "training.seeding",
        "baselines": "training.baselines",
        "checkpoint": "checkpoints.reading",
        "conversion": "checkpoints.conversion",
        "diagnostics": "health.measures",
        "digits": "training.digits",
        "epoch_histogram": "health.histogram",
        "evaluation.weights": "checkpoints.weights",
        "failure_signs": "health.failure_signs",
        "hub": "checkpoints.hub",
        "mmpretrain.hooks": "mmpretrain.check_hooks",
        "monitor": "health.monitor",
        "sampler": "training.sampler",
    }.items()
}


class MovedModules(MetaPathFinder, Loader):
    """Puts the module of today under its old name."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """A spec for the old names, None for all others."""
        if fullname not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=fullname == f"{PACKAGE}.augment")

    def exec_module(self, module: ModuleType) -> None:
        """Import the module of today in place of ``module``."""
        name = module.__name__
        warnings.warn(
            f"{name} has moved: import {MOVED[name]}", DeprecationWarning, stacklevel=2
        )
        sys.modules[name] = importlib.import_module(MOVED[name])
