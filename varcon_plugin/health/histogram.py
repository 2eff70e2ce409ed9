"""Distribution of confidence and tau2 over the samples of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from varcon_plugin.distributed import sum_across_ranks
from varcon_plugin.loss import Observation

__all__ = ["EpochHistogram"]

BINS = 100


class EpochHistogram:
    """Confidence of all samples of an epoch; tau2 is affine in it (Eq. 13)."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._last: Observation | None = None

    @property
    def seen(self) -> bool:
        """Whether there was a sample."""
        return self._sums is not None

    @torch.no_grad()
    def add(self, observation: Observation) -> None:
        """Count this rank's samples that have a loss; nothing leaves the device."""
        confidence = observation.terms.confidence
        counted = observation.references.counted
        finite = confidence.isfinite()
        weights = (finite if counted is None else finite & counted).to(confidence)
        confidence = confidence.nan_to_num()
        if self._sums is None:
            self._sums = confidence.new_zeros(BINS + 2)
        bins = (confidence * BINS).long().clamp(0, BINS - 1)
        self._sums.index_add_(0, bins, weights)
        self._sums[BINS] += (weights * confidence).sum()
        self._sums[BINS + 1] += (weights * confidence.square()).sum()
        if self._last is None or len(confidence) >= len(self._last.embeddings):
            self._last = observation  # an incomplete last batch lacks classes

    def content(self, temperature: float, epsilon: float) -> dict[str, Any]:
        """Arrays to store, of all ranks; every rank must call."""
        assert self._sums is not None
        assert self._last is not None
        sums = sum_across_ranks(self._sums, self._last.group).cpu().double().numpy()
        counts, total = sums[:BINS], max(sums[:BINS].sum(), 1)
        mean = sums[BINS] / total
        deviation = max(sums[BINS + 1] / total - mean**2, 0) ** 0.5
        edges = np.linspace(0, 1, BINS + 1)
        low = temperature - epsilon
        rows, classes = _reference_rows(self._last)
        return {
            "temperature": temperature,
            "epsilon": epsilon,
            "counts": counts.astype(np.int64),
            "confidence_edges": edges,
            "tau2_edges": low + 2 * epsilon * edges,
            "confidence_mean": mean,
            "confidence_std": deviation,
            "tau2_mean": low + 2 * epsilon * mean,
            "tau2_std": 2 * epsilon * deviation,
            "centroids": rows,
            "classes": classes,
        }


def _reference_rows(
    observation: Observation,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The references that count (C, D) and the labels of their classes (C,).

    -1 where no sample of this rank tells the label.
    """
    references = observation.references
    centroids = references.centroids.detach().float().cpu()
    labels = torch.full((len(centroids),), -1, dtype=torch.int64)
    labels[references.targets.cpu()] = observation.labels.cpu()
    present = references.present
    if present is not None and present.dtype == torch.bool:
        kept = present.cpu()
    elif present is not None:  # drawn: only those of the batch are known
        kept = labels >= 0
    else:
        kept = torch.ones_like(labels, dtype=torch.bool)
    return centroids[kept].numpy().astype(np.float16), labels[kept].numpy()
