"""Are the latent classes of a run without labels healthy: measures and failure signs.

`LatentClassMonitor` gathers the assignments of `varcon_plugin.PseudoLabels` over an
interval of steps; the functions are what it tells of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varcon_plugin.distributed import active_group, sum_across_ranks
from varcon_plugin.health.failure_signs import FailureSign, FailureSigns
from varcon_plugin.health.measures import chance_level
from varcon_plugin.self_supervised import SelfSupervisedTerms, SelfSupervisedVarConLoss

__all__ = [
    "LatentClassMonitor",
    "classes_used",
    "latent_failure_sign",
    "mutual_information",
    "usage_entropy",
]

ONE_CLASS = 0.5  # share of a batch that a single class holds
DEAD = 0.5  # share of the classes that nobody was assigned to
PLATEAU = 0.97  # of the chance level
WARM_UP = 0.05  # of the schedule


def classes_used(counts: Tensor) -> Tensor:
    """How many classes have members, of ``counts`` (C,).

    In [1, C]. Healthy: nearly all, once as many embeddings were seen as there are
    classes several times over. Source: ours.
    """
    return (counts > 0).sum()


def usage_entropy(counts: Tensor) -> Tensor:
    """Entropy of the share of each class, of ``counts`` (C,), in nats.

    In [0, ln C]. Healthy: near ln C, which balanced assignment aims at; 0 is collapse
    into one class. Source: Shannon.
    """
    shares = counts / counts.sum().clamp(min=1)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information (NMI) of two labellings (N,) of the same items.

    In [0, 1]: mutual information over the mean of both entropies; 1 says the same up to
    names, and so do two labellings of one class each. Expected above 0 by chance where
    there are many small classes. Source: Strehl and Ghosh, 2002, arithmetic mean.
    """
    _, rows = torch.unique(first, return_inverse=True)
    _, columns = torch.unique(second, return_inverse=True)
    width = int(columns.max()) + 1
    cells = (rows * width + columns).bincount(minlength=(int(rows.max()) + 1) * width)
    joint = cells.double().view(-1, width) / len(first)
    of_rows, of_columns = (
        float(torch.special.entr(joint.sum(axis)).sum()) for axis in (1, 0)
    )
    if of_rows + of_columns == 0:
        return 1.0
    shared = of_rows + of_columns - float(torch.special.entr(joint).sum())
    return max(0.0, 2 * shared / (of_rows + of_columns))


def latent_failure_sign(
    values: Mapping[str, float], *, progress: float | None = None
) -> FailureSign | None:
    """The first sign that applies: one_latent_class, dead_classes, latent_plateau.

    Args:
        values: from `LatentClassMonitor.report`.
        progress: share of the schedule that is done; the plateau is normal in the
            first 5 %. None: unknown, it always counts.
    """
    warm = progress is None or progress >= WARM_UP
    if values["latent_largest_share"] >= ONE_CLASS:
        return FailureSign(
            "one_latent_class",
            f"{values['latent_largest_share']:.0%} of a batch is in one latent "
            f"class of {values['latent_classes']:.0f}: assignments are collapsing; "
            "raise sharpness or iterations, and check that embeddings differ at all",
        )
    used = values["latent_used"] / values["latent_classes"]
    if values["latent_seen"] >= 4 * values["latent_classes"] and used <= 1 - DEAD:
        return FailureSign(
            "dead_classes",
            f"{1 - used:.0%} of {values['latent_classes']:.0f} latent classes are dead "
            f"(no member among {values['latent_seen']:.0f} embeddings); take fewer "
            "classes, more iterations, or a queue",
        )
    if warm and values["latent_loss"] >= PLATEAU * values["latent_chance_level"]:
        return FailureSign(
            "latent_plateau",
            f"the latent classes stay at chance, loss {values['latent_loss']:.2f} of "
            f"{values['latent_chance_level']:.2f} (about 2 ln C): no view is "
            "recognised from another; try a lower learning rate, latent_after, or a "
            "queue that starts later",
        )
    return None


class LatentClassMonitor:
    """Gathers the assignments of an interval of steps and tells what they show.

    Call `add` after each step and `report` at the end of an interval, on every rank.

    Args:
        loss: what is trained with; needs pseudo-labels.
        patience: reports in a row that show a failure sign before it is told.

    Raises:
        ValueError: ``loss`` has no pseudo-labels.
    """

    def __init__(self, loss: SelfSupervisedVarConLoss, patience: int = 3) -> None:
        if loss.pseudo_labels is None or loss.latent_loss is None:
            raise ValueError(
                "latent classes can be watched where there are some: give "
                "SelfSupervisedVarConLoss pseudo_labels"
            )
        self.classes = loss.pseudo_labels.num_classes
        latent = loss.latent_loss
        self.chance = chance_level(self.classes, latent.temperature, latent.epsilon)
        self.signs = FailureSigns(patience)
        self._clear()

    def _clear(self) -> None:
        self._counts = torch.zeros(self.classes, dtype=torch.float64)
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add(self, terms: SelfSupervisedTerms) -> None:
        """Take in what one step returned."""
        if terms.assignment is None or terms.latent is None:
            return
        labels, own, entropy = terms.assignment
        counts = own.bincount(minlength=self.classes)
        agreeing = (labels == own).sum()
        loss = (terms.latent.kl + terms.latent.nll).sum()
        sums = (counts.max(), agreeing, entropy.sum(), loss, counts.sum())
        self._counts += counts.cpu()
        self._sums += torch.stack([x.double() for x in sums]).cpu()

    def report(self) -> dict[str, float]:
        """Measures of the interval, over all ranks, by name; starts the next one.

        ``latent_used`` of ``latent_classes``, ``latent_usage_entropy`` and
        ``latent_entropy`` (of one assignment, mean) in nats, ``latent_agreement`` of
        the views' labels in [0, 1], ``latent_largest_share`` that one class has of a
        rank's batch (mean), ``latent_loss`` beside its ``latent_chance_level``, and
        ``latent_seen``, the embeddings counted.
        """
        group = active_group()
        counts = sum_across_ranks(self._counts, group)
        sums = sum_across_ranks(self._sums, group).tolist()
        largest, agreeing, entropy, loss, rows = sums
        self._clear()
        seen = max(rows, 1)
        return {
            "latent_classes": float(self.classes),
            "latent_used": float(classes_used(counts)),
            "latent_usage_entropy": float(usage_entropy(counts)),
            "latent_entropy": entropy / seen,
            "latent_agreement": agreeing / seen,
            "latent_largest_share": largest / seen,
            "latent_loss": loss / seen if rows else math.nan,
            "latent_chance_level": self.chance,
            "latent_seen": rows,
        }

    def news(
        self, values: Mapping[str, float], progress: float | None = None
    ) -> FailureSign | None:
        """A failure sign of ``values`` that was not told before, if there is one."""
        return self.signs.news(latent_failure_sign(values, progress=progress))

    def state_dict(self) -> dict[str, Any]:
        """What was told so far, in plain values, for a checkpoint."""
        return self.signs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.signs.load_state_dict(state)
