"""What a run that goes wrong looks like in the measures of `diagnostics`, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FailureSign", "FailureSigns", "failure_sign"]

COLLAPSE_COSINE = 0.99  # between two classes
EARLY = 0.1  # of the schedule
WARM_UP = 0.05  # of the schedule: every run starts near collapse and chance
NEARLY_ALL = 0.99  # of the samples
SATURATED = 0.95  # confidence


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
    one_class, no_classmates, collapse, not_learning, tau2_stuck, early_confidence.

    Args:
        values: from `varcon_plugin.diagnostics.measure`.
        temperature: tau_1 of the loss.
        epsilon: of the loss.
        progress: share of the schedule that is done. collapse, not_learning and tau2 at
            its lower bound are normal in the first 5 %, and not signs there;
            early_confidence is one in the first 10 % only. None: unknown, the former
            always count and the latter never.
        batch_references: False where the class references come from elsewhere than the
            batch, so that samples need no classmates in it.
    """
    v = values
    warm = progress is None or progress >= WARM_UP
    early = progress is not None and progress < EARLY
    if v["references"] < 2:
        return FailureSign(
            "one_class",
            "every batch holds a single class, so that loss and gradient are 0; "
            "shuffle the data, or sample several classes a batch",
        )
    alone = max(v["singleton_share"], v["random_confidence"]) >= 0.5
    if batch_references and alone:
        return FailureSign(
            "no_classmates",
            f"{v['singleton_share']:.0%} of the images have no classmate in the global "
            f"batch ({v['classes']:.0f} classes), and random embeddings would show "
            f"confidence {v['random_confidence']:.2f}: images are told apart, not "
            "classes; use larger or class-balanced batches",
        )
    if warm and v["centroid_cosine_max"] >= COLLAPSE_COSINE:
        return FailureSign(
            "collapse",
            f"centroids are collapsing: max cosine {v['centroid_cosine_max']:.3f}, "
            f"mean {v['centroid_cosine_mean']:.3f}, effective rank "
            f"{v['centroid_effective_rank']:.1f} of {v['references']:.0f} classes; try "
            "a lower learning rate or warm-up",
        )
    if warm and v["confidence"] <= v["random_confidence"]:
        return FailureSign(
            "not_learning",
            f"nothing is learned: confidence {v['confidence']:.3f} is not above the "
            f"{v['random_confidence']:.3f} of random embeddings, loss {v['loss']:.2f} "
            f"where chance is {v['chance_level']:.2f}; check labels and learning rate",
        )
    if epsilon > 0 and warm and v["tau2_low_share"] >= NEARLY_ALL:
        return FailureSign(
            "tau2_stuck",
            f"tau2 is stuck at its lower bound {temperature - epsilon:.3g} for "
            f"{v['tau2_low_share']:.0%} of the samples: no posterior passes 5 %; try a "
            "lower temperature",
        )
    if epsilon > 0 and v["tau2_high_share"] >= NEARLY_ALL and v["alignment"] > 1:
        return FailureSign(
            "tau2_stuck",
            f"tau2 is stuck at its upper bound {temperature + epsilon:.3g} for "
            f"{v['tau2_high_share']:.0%} of the samples although classes are not "
            f"compact (alignment {v['alignment']:.2f}); try a higher temperature",
        )
    if early and v["confidence"] >= SATURATED:
        return FailureSign(
            "early_confidence",
            f"posteriors reach 1 too early: confidence {v['confidence']:.3f} after "
            f"{progress:.0%} of the schedule; try a higher temperature, stronger "
            "augmentation or a lower learning rate, and check that no label leaks "
            "into the images",
        )
    return None


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
