"""What a run that goes wrong looks like in the measures of `diagnostics`, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FailureSign", "FailureSigns", "failure_sign"]

WARM_UP = 0.05  # of the schedule: every run starts near collapse and near chance
EARLY = 0.1  # of the schedule
ALONE = 0.5  # of the images
COLLAPSED = 0.98  # mean cosine between classes; a healthy start is seen to reach .96
NEAR_CHANCE = 0.95  # of the chance level
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
    if batch_references and v["singleton_share"] >= ALONE:
        return FailureSign(
            "no_classmates",
            f"{v['singleton_share']:.0%} of the images have no classmate in the global "
            f"batch ({v['classes']:.0f} classes), and random embeddings would show "
            f"confidence {v['random_confidence']:.2f}: images are told apart, not "
            "classes; use larger or class-balanced batches",
        )
    if warm and v["centroid_cosine_mean"] >= COLLAPSED:
        return FailureSign(
            "collapse",
            f"centroids are collapsing: max cosine {v['centroid_cosine_max']:.3f}, "
            f"mean {v['centroid_cosine_mean']:.3f}, effective rank "
            f"{v['centroid_effective_rank']:.1f} of {v['references']:.0f} classes; try "
            "a lower learning rate or warm-up",
        )
    if warm and v["loss"] >= NEAR_CHANCE * v["chance_level"]:
        return FailureSign(
            "not_learning",
            f"nothing is learned: loss {v['loss']:.2f} where chance is "
            f"{v['chance_level']:.2f}; check that labels belong to their images, and "
            "try a higher learning rate",
        )
    if epsilon > 0 and warm and v["tau2_low_share"] >= NEARLY_ALL:
        return FailureSign(
            "tau2_stuck",
            f"tau2 is stuck at its lower bound {temperature - epsilon:.3g} for "
            f"{v['tau2_low_share']:.0%} of the samples: no posterior rises above "
            "5 %; try a lower temperature",
        )
    within = 1 - v["alignment"] / 2
    hardly_apart = within - v["centroid_cosine_mean"] < SEPARATED
    if epsilon > 0 and v["tau2_high_share"] >= NEARLY_ALL and hardly_apart:
        return FailureSign(
            "tau2_stuck",
            f"tau2 is stuck at its upper bound {temperature + epsilon:.3g} for "
            f"{v['tau2_high_share']:.0%} of the samples although the classes are "
            f"hardly apart (cosine {within:.2f} within, "
            f"{v['centroid_cosine_mean']:.2f} between); try a higher temperature",
        )
    if early and v["confidence"] >= SATURATED:
        return FailureSign(
            "early_confidence",
            f"posteriors reach 1 too early: confidence {v['confidence']:.3f} after "
            f"{progress:.0%} of the schedule (random embeddings: "
            f"{v['random_confidence']:.2f}); try stronger augmentation, a higher "
            "temperature or a shorter schedule, and check that no label leaks into "
            "the images",
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
