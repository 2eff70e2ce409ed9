"""What each experiment trains: methods, settings and seeds, as data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from varcon_plugin.evaluation.linear import REGULARISATIONS

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "Method", "cells"]


@dataclass(frozen=True)
class Method:
    """A loss: the config of a recipe that has it, and what is set in it.

    Attributes:
        name: in tables and pictures.
        config: path below ``configs/``, with ``{recipe}`` in it.
        options: config values by dotted key.
        bank: whether class references outlive the batch (`MomentumCentroids`).
        balanced: whether batches are class-balanced (`ClassBalancedSampler`).
    """

    name: str
    config: str = "varcon_{recipe}.py"
    options: dict[str, Any] = field(default_factory=dict)
    bank: bool = False
    balanced: bool = False


VARCON = Method("VarCon")
LEAVE_ONE_OUT = Method(
    "VarCon, leave-one-out", options={"model.head.loss.leave_one_out": True}
)
BANK = Method("VarCon, momentum centroids", bank=True)
SLOW_BANK = Method(
    "VarCon, momentum centroids of a slow encoder",
    options={"model.ema_decay": 0.99},
    bank=True,
)
BALANCED_BANK = Method(
    "VarCon, momentum centroids, balanced batches", bank=True, balanced=True
)
SUPCON = Method("SupCon", "baselines/supcon_{recipe}.py")
PROTOTYPE = Method("prototype cross-entropy", "baselines/prototype_{recipe}.py")
CROSS_ENTROPY = Method("cross-entropy", "baselines/ce_{recipe}.py")
SMOOTHED = Method(
    "cross-entropy, label smoothing", "baselines/ce_smoothing_{recipe}.py"
)


FLOWING = {"model.head.loss.detach_centroids": False}
GRADIENT = (
    VARCON,
    Method("VarCon, gradient through the means", options=FLOWING),
    Method(
        "VarCon, gradient through the means, sample left out",
        options={**FLOWING, "model.head.loss.leave_one_out": True},
    ),
    Method(
        "VarCon, gradient through the means, clipped",
        options={**FLOWING, "optim_wrapper.clip_grad.max_norm": 1.0},
    ),
)


def fixed(epsilon: float) -> Method:
    """VarCon with another epsilon; 0 fixes tau2."""
    return Method("VarCon", options={"model.head.loss.epsilon": epsilon})


@dataclass(frozen=True)
class Experiment:
    """A grid: every method at every setting, with every seed.

    Attributes:
        question: what it answers, for the report.
        axis: what the settings are.
        methods: at each setting; the keys are the settings, None is the recipe's own.
        points: how often the accuracy is measured in the course of a run.
        regularisations: of the linear classifier, to choose from.
        batch_size: where that is not the axis; None is the recipe's own.
    """

    question: str
    axis: str
    methods: dict[float | None, Sequence[Method]]
    points: int = 5
    regularisations: Sequence[float] = REGULARISATIONS
    batch_size: int | None = None


def batch_sizes(
    sizes: Sequence[int], methods: Sequence[Method]
) -> dict[float | None, Sequence[Method]]:
    """All ``methods`` at each of ``sizes``."""
    return dict.fromkeys(sizes, methods)


LOSSES = (VARCON, BANK, SLOW_BANK, SUPCON, PROTOTYPE, CROSS_ENTROPY, SMOOTHED)
SOURCES = (VARCON, LEAVE_ONE_OUT, BANK, BALANCED_BANK, SUPCON, CROSS_ENTROPY)
SMALL, LARGE = "small", "large"  # networks for two cores, and for GPUs
MANY_STEPS = 64  # at 256 SupCon does not leave its start in 20 epochs of the digits
EXPERIMENTS: dict[str, dict[str, Experiment]] = {
    "batch-size": {
        scale: Experiment(
            "How does the batch size change accuracy and speed of convergence?",
            "batch size",
            batch_sizes(sizes, (VARCON, SUPCON)),
        )
        for scale, sizes in (
            (SMALL, (64, 128, 256, 512)),
            (LARGE, (256, 512, 1024, 2048, 4096)),
        )
    },
    "temperature": {
        scale: Experiment(
            "Does it help that tau2 adapts (epsilon > 0; 0 keeps it fixed)?",
            "epsilon",
            {epsilon: (fixed(epsilon),) for epsilon in (0.0, 0.01, 0.02, 0.05)},
            batch_size=batch_size,
        )
        for scale, batch_size in ((SMALL, MANY_STEPS), (LARGE, None))
    },
    "losses": {
        scale: Experiment(
            "Which loss learns the best features under the same recipe?",
            "recipe",
            {None: LOSSES},
            points=1,
            regularisations=(0.01, 0.1, 1.0),
        )
        for scale in (SMALL, LARGE)
    },
    "gradient": {
        scale: Experiment(
            "Does it help that the gradient flows through the class means?",
            "recipe",
            {None: GRADIENT},
            points=1,
            regularisations=(0.01, 0.1, 1.0),
        )
        for scale in (SMALL, LARGE)
    },
    "convergence": {
        scale: Experiment(
            "How fast does each loss converge under the same recipe?",
            "recipe",
            {None: (VARCON, SUPCON, CROSS_ENTROPY)},
            points=10,
            batch_size=batch_size,
        )
        for scale, batch_size in ((SMALL, MANY_STEPS), (LARGE, None))
    },
    "small-batch": {
        scale: Experiment(
            "What is left of each loss when few images share a batch?",
            "batch size",
            batch_sizes(sizes, SOURCES),
            points=1,
            regularisations=(0.01, 0.1, 1.0),
        )
        for scale, sizes in (
            (SMALL, (16, 32, 64, 128, 256)),
            (LARGE, (32, 64, 128, 256)),
        )
    },
}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        method: of the experiment.
        setting: on its axis; None is the recipe's own.
        batch_size: images of all processes together; None is the recipe's own.
        seed: of the run.
        learning_rate: factor on the recipe's, which is scaled to the batch size.
    """

    method: Method
    setting: float | None
    batch_size: int | None
    seed: int
    learning_rate: float = 1.0

    @property
    def name(self) -> str:
        """Name of its folder."""
        setting = "" if self.setting is None else f"_{self.setting:g}"
        method = re.sub("[^a-z0-9]+", "-", self.method.name.lower())
        factor = "" if self.learning_rate == 1 else f"_lr{self.learning_rate:g}"
        return f"{method}{setting}_seed{self.seed}{factor}"


def cells(
    experiment: Experiment,
    seeds: Sequence[int],
    settings: Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
) -> list[Cell]:
    """The runs of ``experiment``, seed by seed: any first part is a fair comparison.

    Args:
        experiment: one of `EXPERIMENTS`.
        seeds: of the runs.
        settings: keep these settings only; of batch sizes, take these.
        methods: keep the methods of these names only.

    Raises:
        ValueError: a setting or a method is not one of the experiment's.
    """
    grid = experiment.methods
    names = {method.name: None for members in grid.values() for method in members}
    unknown_names = [name for name in methods or () if name not in names]
    if unknown_names:
        raise ValueError(
            f"methods must be of {'; '.join(names)}, got {'; '.join(unknown_names)}"
        )
    sized = experiment.axis == "batch size"
    if settings is not None and sized:
        grid = batch_sizes([int(s) for s in settings], next(iter(grid.values())))
    elif settings is not None:
        unknown = [s for s in settings if s not in grid]
        if unknown:
            known = ", ".join(f"{s:g}" for s in grid if s is not None) or "none"
            raise ValueError(
                f"settings must be of {known} ({experiment.axis}), got {unknown}"
            )
        grid = {s: grid[s] for s in settings}
    return [
        Cell(
            method,
            setting,
            int(setting) if sized and setting else experiment.batch_size,
            seed,
        )
        for seed, (setting, members) in itertools.product(seeds, grid.items())
        for method in members
        if methods is None or method.name in methods
    ]
