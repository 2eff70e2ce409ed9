"""What a run that goes wrong looks like in the measures of `diagnostics`, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["FailureSign", "FailureSigns", "failure_sign"]

WARM_UP = 0.05  # of the schedule: every run starts near chance
EARLY = 0.1  # of the schedule
ALONE = 0.5  # of the images
NEAR_CHANCE = 0.95  # of the chance level
COLLAPSED = 0.98  # mean cosine between classes
ONE_POINT = 0.02  # dispersion within classes
NEARLY_ALL = 0.99  # of the samples
SEPARATED = 0.3  # cosine within classes less that between them
SATURATED = 0.95  # mean confidence


class FailureSign(NamedTuple):
    """What is wrong with a run, and what to try."""

    name: str
    message: str


def failure_sign(
    values: Mapping[str, float],
    *,
    temperature: float,
    epsilon: float,
    progress: float | None = None,
    batch_references: bool = True,
) -> FailureSign | None:
    """The one sign that explains the others, or None.

    One cause shows in several measures: collapsed centroids, say, also put the loss at
    chance and tau2 at its lower bound. The first that applies of this order is told:
    not_finite, one_class, no_classmates, collapse, not_learning, tau2_stuck,
    early_confidence.

    Args:
        values: from `varcon_plugin.health.monitor.measure`.
        temperature: tau_1 of the loss.
        epsilon: of the loss.
        progress: share of the schedule that is done. collapse, not_learning and tau2 at
            its lower bound are normal in the first 5 %, and not signs there;
            early_confidence is one in the first 10 % only. None: unknown, the former
            always count and the latter never.
        batch_references: False where the class references come from elsewhere than the
            batch, so that samples need no classmates in it.
    """
    run = _Run(values, temperature, epsilon, progress, batch_references)
    for name, explain in (
        ("not_finite", _not_finite),
        ("one_class", _one_class),
        ("no_classmates", _no_classmates),
        ("collapse", _collapse),
        ("not_learning", _not_learning),
        ("tau2_stuck", _tau2_stuck_low),
        ("tau2_stuck", _tau2_stuck_high),
        ("early_confidence", _early_confidence),
    ):
        message = explain(run)
        if message is not None:
            return FailureSign(name, message)
    return None


@dataclass(frozen=True)
class _Run:
    values: Mapping[str, float]
    temperature: float
    epsilon: float
    progress: float | None
    batch_references: bool

    @property
    def warm(self) -> bool:
        return self.progress is None or self.progress >= WARM_UP

    @property
    def at_chance(self) -> bool:
        return self.values["loss"] >= NEAR_CHANCE * self.values["chance_level"]


def _not_finite(run: _Run) -> str | None:
    if math.isfinite(run.values["loss"]):
        return None
    return (
        "an embedding is NaN or infinite and the loss is NaN; try a lower learning "
        "rate, or bfloat16 in place of float16"
    )


def _one_class(run: _Run) -> str | None:
    if run.values["references"] >= 2:
        return None
    return (
        "every batch holds a single class, so that loss and gradient are 0; shuffle "
        "the data, or sample several classes a batch"
    )


def _no_classmates(run: _Run) -> str | None:
    v = run.values
    if not run.batch_references or v["singleton_share"] < ALONE:
        return None
    return (
        f"{v['singleton_share']:.0%} of the images have no classmate in the global "
        f"batch ({v['classes']:.0f} classes), and random embeddings would show "
        f"confidence {v['random_confidence']:.2f}: images are told apart, not classes; "
        "use larger or class-balanced batches"
    )


def _collapse(run: _Run) -> str | None:
    v = run.values
    one_point = v["dispersion"] <= ONE_POINT and v["centroid_cosine_mean"] >= COLLAPSED
    if not (run.warm and run.at_chance and one_point):
        return None
    return (
        f"centroids are collapsing: max cosine {v['centroid_cosine_max']:.3f}, mean "
        f"{v['centroid_cosine_mean']:.3f}, effective rank "
        f"{v['centroid_effective_rank']:.1f} of {v['references']:.0f} classes; try a "
        "lower learning rate or warm-up"
    )


def _not_learning(run: _Run) -> str | None:
    if not (run.warm and run.at_chance):
        return None
    return (
        f"nothing is learned: loss {run.values['loss']:.2f} where chance is "
        f"{run.values['chance_level']:.2f}; check that labels belong to their images, "
        "and try another learning rate"
    )


def _tau2_stuck_low(run: _Run) -> str | None:
    share = run.values["tau2_low_share"]
    if run.epsilon == 0 or not run.warm or share < NEARLY_ALL:
        return None
    return (
        f"tau2 is stuck at its lower bound {run.temperature - run.epsilon:.3g} for "
        f"{share:.0%} of the samples: no posterior rises above 5 %; try a lower "
        "temperature"
    )


def _tau2_stuck_high(run: _Run) -> str | None:
    share = run.values["tau2_high_share"]
    within = 1 - run.values["alignment"] / 2
    between = run.values["centroid_cosine_mean"]
    hardly_apart = within - between < SEPARATED  # not so if there is no pair: NaN
    if run.epsilon == 0 or share < NEARLY_ALL or not hardly_apart:
        return None
    return (
        f"tau2 is stuck at its upper bound {run.temperature + run.epsilon:.3g} for "
        f"{share:.0%} of the samples although the classes are hardly apart (cosine "
        f"{within:.2f} within, {between:.2f} between); try a higher temperature"
    )


def _early_confidence(run: _Run) -> str | None:
    v = run.values
    early = run.progress is not None and run.progress < EARLY
    if not early or v["confidence"] < SATURATED:
        return None
    return (
        f"posteriors reach 1 too early: confidence {v['confidence']:.3f} after "
        f"{run.progress:.1%} of the schedule (random embeddings: "
        f"{v['random_confidence']:.2f}); try stronger augmentation, a higher "
        "temperature or a shorter schedule, and check that no label leaks into the "
        "images"
    )


class FailureSigns:
    """Tells each sign once, when it has come ``patience`` times in a row."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._row: tuple[str | None, int] = (None, 0)
        self._told: list[str] = []

    def news(self, sign: FailureSign | None) -> FailureSign | None:
        """``sign`` if it is to be told now."""
        name = sign.name if sign else None
        last, times = self._row
        self._row = (name, times + 1 if name == last else 1)
        if sign is None or name in self._told or self._row[1] < self.patience:
            return None
        self._told.append(sign.name)
        return sign

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"row": list(self._row), "told": list(self._told)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        name, times = state["row"]
        self._row = (name, times)
        self._told = list(state["told"])
