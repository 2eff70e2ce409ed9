"""`DiagnosticsMonitor`: measures a run while it trains, for every adapter alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from varcon_plugin.centroids import BatchCentroids
from varcon_plugin.diagnostics import measure
from varcon_plugin.distributed import sum_across_ranks
from varcon_plugin.failure_signs import FailureSign, FailureSigns, failure_sign
from varcon_plugin.loss import Observation, VarConLoss

__all__ = ["DiagnosticsMonitor", "StepReport", "find_loss"]

BINS = 100  # of the histograms
SCALARS = "scalars.jsonl"


class StepReport(NamedTuple):
    """What there is to tell after a step.

    Attributes:
        scalars: measures by name, on the steps that are measured; else None.
        warning: a failure sign that was not told before, or None.
    """

    scalars: dict[str, float] | None
    warning: FailureSign | None


def find_loss(model: nn.Module) -> VarConLoss:
    """The one `VarConLoss` inside ``model``.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [m for m in model.modules() if isinstance(m, VarConLoss)]
    if len(found) != 1:
        raise ValueError(
            f"diagnostics need exactly one VarConLoss in the model, found {len(found)} "
            f"in {type(model).__name__}"
        )
    return found[0]


class DiagnosticsMonitor:
    """Observes a `VarConLoss` at an interval, keeps what it sees, and warns.

    Call `begin_step`, run the step, call `end_step`; `end_epoch` after each epoch. All
    ranks must call alike: the measures are of the global batch. Between the steps that
    are measured nothing is observed, and nothing costs.

    In ``directory``: ``scalars.jsonl``, a line for each measured step, and
    ``epoch_0010.npz`` for each chosen epoch, with histograms of confidence and tau2
    over all samples of all steps and with the class references of the last step.

    Args:
        loss: the loss that is trained with.
        directory: where to write; None on all ranks but the first.
        interval: steps from one measured step to the next.
        histogram_epochs: the epochs to store, from 1, or every n-th for an int. The
            authors' code stores 10, 50, 100 and 200.
        views: embeddings an image contributes to the batch.
        patience: measured steps in a row that show a failure sign before it is told.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        loss: VarConLoss,
        directory: Path | None,
        *,
        interval: int = 50,
        histogram_epochs: int | Sequence[int] = (10, 50, 100, 200),
        views: int = 2,
        patience: int = 5,
    ) -> None:
        counts = {"interval": interval, "views": views, "patience": patience}
        chosen = (
            [histogram_epochs]
            if isinstance(histogram_epochs, int)
            else histogram_epochs
        )
        counts["histogram_epochs"] = min(chosen, default=1)
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.loss = loss
        self.directory = directory
        self.interval = interval
        self.histogram_epochs = histogram_epochs
        self.views = views
        self.signs = FailureSigns(patience)
        self._handle: RemovableHandle | None = None
        self._step = 0
        self._measuring = False
        self._scalars: dict[str, float] | None = None
        self._histogram: _Histogram | None = None

    def begin_step(self, step: int, epoch: int) -> None:
        """Before step ``step`` of epoch ``epoch``, both counted from 1."""
        self._stop_observing()
        self._measuring = step % self.interval == 0 and step != self._step
        self._step, self._scalars = step, None
        chosen = self._is_chosen(epoch)
        if self._histogram is None and chosen:
            self._histogram = _Histogram()
        if self._measuring or chosen:
            self._handle = self.loss.register_observer(self._observe)

    def end_step(self, progress: float | None = None) -> StepReport:
        """After the step; ``progress`` is the share of the schedule done, if known."""
        self._stop_observing()
        if self._scalars is None:
            return StepReport(None, None)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"step": self._step, **self._scalars})
            with (self.directory / SCALARS).open("a") as file:
                file.write(line + "\n")
        sign = failure_sign(
            self._scalars,
            temperature=self.loss.temperature,
            epsilon=self.loss.epsilon,
            progress=progress,
            batch_references=isinstance(self.loss.centroids, BatchCentroids),
        )
        return StepReport(self._scalars, self.signs.news(sign))

    def end_epoch(self, epoch: int) -> None:
        """After epoch ``epoch``, from 1: store its histograms if it is a chosen one."""
        histogram, self._histogram = self._histogram, None
        if histogram is None or not histogram.seen:
            return
        content = histogram.content(self.loss.temperature, self.loss.epsilon)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(
                self.directory / f"epoch_{epoch:04d}.npz",
                epoch=epoch,
                step=self._step,
                **content,
            )

    def state_dict(self) -> dict[str, Any]:
        """What was told so far, in plain values, for a checkpoint."""
        return self.signs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; what was told is not told again."""
        self.signs.load_state_dict(state)

    def _is_chosen(self, epoch: int) -> bool:
        chosen = self.histogram_epochs
        return epoch % chosen == 0 if isinstance(chosen, int) else epoch in chosen

    def _stop_observing(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _observe(self, observation: Observation) -> None:
        if self._histogram is not None:
            self._histogram.add(observation)
        if self._measuring:
            source = self.loss.centroids
            self._scalars = measure(
                observation,
                self.loss.temperature,
                self.loss.epsilon,
                views=self.views,
                self_included=isinstance(source, BatchCentroids)
                and not source.leave_one_out,
            )


class _Histogram:
    """Confidence of all samples of an epoch; tau2 is affine in it (Eq. 13)."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._last: Observation | None = None

    @property
    def seen(self) -> bool:
        return self._sums is not None

    @torch.no_grad()
    def add(self, observation: Observation) -> None:
        """Count this rank's samples that have a loss; nothing leaves the device."""
        confidence = observation.terms.confidence
        counted = observation.references.counted
        weights = torch.ones_like(confidence) if counted is None else counted
        weights = weights.to(confidence)
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
    if references.present is not None:
        kept = references.present.cpu()
        centroids, labels = centroids[kept], labels[kept]
    return centroids.numpy().astype(np.float16), labels.numpy()
